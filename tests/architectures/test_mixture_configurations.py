"""Configurations of mixtures that cannot be: one line that names the key and what it may be.

In: the tiny configurations with one key changed. Out: the refusal of each, key by key.
"""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import VARIANTS

from crumb.architectures.registry import plan_of
from crumb.errors import CheckpointError

V3, V2, QWEN, GLM = "deepseek_v3", "deepseek_v2-groups", "qwen3_moe", "glm4_moe"
L4, LITE, CHUNKS = "llama4_text", "glm4_moe_lite", ["chunked_attention"] * 4
DYNAMIC = {"type": "dynamic", "factor": 2}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (V3, {"kv_lora_rank": None}, "kv_lora_rank: .* an integer from 1"),
    (V3, {"q_lora_rank": -3}, "q_lora_rank: .* an integer from 1"),
    (V3, {"qk_rope_head_dim": 5}, "qk_rope_head_dim: .* an even number"),
    (V3, {"v_head_dim": 0}, "v_head_dim: .* an integer from 1"),
    (V3, {"n_group": 5}, "n_group: .* groups that divide 12 experts"),
    (V3, {"topk_group": 9}, "n_group: .* no more chosen than there are"),
    (V3, {"num_experts_per_tok": 7}, "num_experts_per_tok: .* at most the 6 experts"),
    (V3, {"first_k_dense_replace": "all"}, "first_k_dense_replace: .* an integer from 0"),
    (V3, {"rope_scaling": DYNAMIC}, "rope_type: .* one of default"),
    (V2, {"topk_method": "noaux"}, "topk_method: .* one of greedy, group_limited_greedy"),
    (V2, {"num_experts_per_tok": None}, "num_experts_per_tok: .* an integer from 1"),
    (V2, {"n_shared_experts": None}, "n_shared_experts: .* an integer from 1"),
    (QWEN, {"num_experts_per_tok": 8}, "num_experts_per_tok: .* at most the 7 experts"),
    (QWEN, {"moe_intermediate_size": None}, "moe_intermediate_size: .* an integer from 1"),
    (QWEN, {"num_experts": 10**6}, "num_experts: .* at most 131072 experts in 3 blocks"),
    (QWEN, {"mlp_only_layers": 3}, "mlp_only_layers: .* a list of blocks"),
    (GLM, {"routed_scaling_factor": "big"}, "routed_scaling_factor: .* a number"),
    ("mixtral", {"num_local_experts": 0}, "num_local_experts: .* an integer from 1"),
    ("granitemoe", {"num_experts_per_tok": 6}, "num_experts_per_tok: .* at most the 5 experts"),
    ("gpt_oss", {"num_local_experts": True}, "num_local_experts: .* an integer from 1"),
    ("olmoe", {"num_experts": "many"}, "num_experts: .* an integer from 1"),
    (LITE, {"mlp_layer_types": ["sparse", "moe", "dense"]}, "mlp_layer_types: .* among sparse, d"),
    (LITE, {"mlp_layer_types": ["dense"]}, "mlp_layer_types: .* a list of 3 kinds"),
    (L4, {"moe_layers": "all"}, "moe_layers: .* a list of blocks"),
    (L4, {"interleave_moe_layer_step": 0}, "interleave_moe_layer_step: .* an integer from 1"),
    (L4, {"attn_temperature_tuning": "yes"}, "attn_temperature_tuning: .* true or false"),
    (L4, {"layer_types": ["sliding_attention"] * 4}, "layer_types: .* among full_attention, chu"),
    (L4, {"layer_types": CHUNKS, "attention_chunk_size": None}, "attention_chunk_size: .* integer"),
    (L4, {"no_rope_layers": [1, 0]}, "no_rope_layers: .* a list of 4 numbers"),
    ("qwen2_moe", {"shared_expert_intermediate_size": None}, "shared_expert_intermediate_size"),
]


@pytest.mark.parametrize(("variant", "change", "text"), REFUSED, ids=str)
def test_a_mixture_that_cannot_be_is_refused_by_its_key(
    variant: str, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(CheckpointError, match=text) as refusal:
        plan_of(dict(VARIANTS[variant]) | change)
    assert "\n" not in str(refusal.value)


def test_a_latent_model_without_a_low_rank_of_queries_has_one_matrix_for_them() -> None:
    tensors = {spec.name for spec in plan_of(VARIANTS["deepseek_v2"]).tensors()}
    assert "model.layers.0.self_attn.q_proj.weight" in tensors
    assert not any("q_a_" in name or "q_b_" in name for name in tensors)


def test_any_block_of_glm_4_7_may_be_dense() -> None:
    listed = {"mlp_layer_types": ["dense", "sparse", "dense"]}
    tensors = {spec.name for spec in plan_of(dict(VARIANTS[LITE]) | listed).tensors()}
    routers = [f"model.layers.{block}.mlp.gate.weight" in tensors for block in range(3)]
    assert routers == [False, True, False]
