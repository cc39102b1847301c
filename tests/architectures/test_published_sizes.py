"""Published mixtures by their published configurations: the parameters that their makers count.

In: what config.json of each says of its sizes. Out: parameters of the Plan, and that llama.cpp has
an architecture for each.
"""

from __future__ import annotations

from typing import Any

import pytest

from crumb.architectures.registry import plan_of
from crumb.checkpoints.gguf.model import gguf_model_of

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32}
YARN |= {"beta_slow": 1}
LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
LATENT |= {"rms_norm_eps": 1e-6, "max_position_embeddings": 163840}
DEEPSEEK_V3 = LATENT | {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "q_lora_rank": 1536,
    "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
}
DEEPSEEK_V2_LITE = LATENT | {
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
}
ABRUPT = {"rope_type": "llama3", "factor": 16.0, "original_max_position_embeddings": 8192}
ABRUPT |= {"high_freq_factor": 1.0, "low_freq_factor": 1.0}
SCOUT = {
    "model_type": "llama4_text",
    "vocab_size": 202048,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "max_position_embeddings": 10485760,
    "no_rope_layers": [],
    "rope_scaling": ABRUPT,
}
MAVERICK = SCOUT | {
    "num_local_experts": 128,
    "interleave_moe_layer_step": 2,
    "use_qk_norm": False,
    "max_position_embeddings": 1048576,
    "rope_scaling": None,
    "attn_temperature_tuning": 4,
}
PUBLISHED: dict[str, tuple[dict[str, Any], int, int]] = {
    "DeepSeek V3": (DEEPSEEK_V3, 671_026_419_200, 256),
    "DeepSeek V2 Lite": (DEEPSEEK_V2_LITE, 15_706_484_224, 64),
    "Llama 4 Scout": (SCOUT, 107_769_861_120, 16),
    "Llama 4 Maverick": (MAVERICK, 400_711_848_960, 128),
}
"""Configuration, parameters, experts of a block. Their makers round to 671, 15.7, 109 and 400 G,
Llama's with eyes of about 1 G."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_mixture_has_the_parameters_of_its_files(name: str) -> None:
    configuration, parameters, experts = PUBLISHED[name]
    assert plan_of(configuration).parameters() == parameters
    assert max(name.parts for name in gguf_model_of(configuration).names()) == experts
