"""Experts in GGUF: all of a block in one tensor, each read where it lies, written in order.

In: tiny mixtures as GGUF files. Out: the same weights; what does not fit is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_exports import source, written
from mixture_configurations import MIXTURES_FOR_GGUF

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.gguf.container import TensorToWrite, read_gguf, write_container
from crumb.checkpoints.gguf.writer import TypeChoice, export_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import StoredCodes, TensorMap
from crumb.errors import CheckpointError, UsageError
from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, Scales, SolveSettings

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}
WIDE = MIXTURES_FOR_GGUF["mixtral"] | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
DOWN = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
EXPERTS = 5


pytestmark = pytest.mark.usefixtures("without_tokenizer")


def rewritten(path: Path, out: Path, metadata: dict[str, Any], others: dict[str, Any]) -> Path:
    """A file with other metadata, where None takes a key out, and with other or new tensors.

    Those are arrays, shapes of zeros, or None for tensors that are left out.
    """
    file = read_gguf(path)
    arrays = {
        name: each.raw.read().view(np.float32).reshape(each.shape)
        for name, each in file.tensors.items()
    }
    arrays |= {
        name: np.zeros(each, np.float32) if isinstance(each, tuple) else each
        for name, each in others.items()
    }
    tensors = [
        TensorToWrite(name, "F32", array.shape, lambda array=array: [array.view(np.uint8)])  # type: ignore[misc]
        for name, array in arrays.items()
        if array is not None
    ]
    values = {**file.metadata.values, **metadata}
    write_container(out, {k: value for k, value in values.items() if value is not None}, tensors)
    return out


def test_experts_lie_behind_each_other_and_each_is_read_where_it_lies(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", WIDE)
    path = written(ours, tmp_path / "model.gguf")
    stack = read_gguf(path).tensors["blk.1.ffn_down_exps.weight"]
    assert stack.shape == (EXPERTS, 64, 96)
    entries = open_checkpoint(path).tensors
    for expert in range(EXPERTS):
        entry = entries.entry(DOWN.format(expert))
        assert isinstance(entry, StoredArray)
        assert entry.offset_bytes == stack.raw.offset_bytes + expert * stack.size_bytes // EXPERTS
        expected = ours.tensors.read_float(DOWN.format(expert))
        np.testing.assert_array_equal(entry.read_float(), expected)


def quantized(ours: Checkpoint, out: Path) -> Checkpoint:
    rounding = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    quantize(QuantizeRequest(str(ours.path), out, bits=4, group_size=32, solve=rounding))
    return open_checkpoint(out)


def test_quantized_experts_stay_as_they_are(tmp_path: Path) -> None:
    ours = quantized(source(tmp_path / "source", WIDE), tmp_path / "int4")
    export_gguf(ours, tmp_path / "a.gguf", TypeChoice(), "a", lambda report: None)
    assert read_gguf(tmp_path / "a.gguf").tensors["blk.2.ffn_up_exps.weight"].type.name == "Q4_0"
    theirs = open_checkpoint(tmp_path / "a.gguf")
    for expert in range(EXPERTS):
        entry = theirs.tensors.entry(DOWN.format(expert))
        assert isinstance(entry, StoredCodes)
        expected = ours.tensors.read_float(DOWN.format(expert))
        np.testing.assert_array_equal(entry.read_float(), expected)
        some = slice(7, 23)
        np.testing.assert_array_equal(entry.read_float(some), expected[some])


def test_experts_of_several_formats_become_the_widest_of_them(tmp_path: Path) -> None:
    floats = source(tmp_path / "source", WIDE)
    packed = quantized(floats, tmp_path / "int4")
    one = DOWN.format(3)
    entries = {**packed.tensors.entries, one: floats.tensors.entry(one)}
    mixed = replace(packed, tensors=TensorMap(packed.path, entries))
    export_gguf(mixed, tmp_path / "a.gguf", TypeChoice(), "a", lambda report: None)
    assert read_gguf(tmp_path / "a.gguf").tensors["blk.1.ffn_down_exps.weight"].type.name == "F32"
    theirs = open_checkpoint(tmp_path / "a.gguf").tensors
    for expert in range(EXPERTS):
        expected = mixed.tensors.read_float(DOWN.format(expert))
        np.testing.assert_array_equal(theirs.read_float(DOWN.format(expert)), expected)


@pytest.mark.parametrize("shape", [(4, 64, 96), (64, 96), (EXPERTS, 64, 95), (EXPERTS, 63, 96)])
def test_a_stack_of_another_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = written(source(tmp_path / "source", WIDE), tmp_path / "model.gguf")
    other = rewritten(path, tmp_path / "b.gguf", {}, {"blk.1.ffn_down_exps.weight": shape})
    with pytest.raises(CheckpointError, match="shape its configuration implies"):
        open_checkpoint(other)


def test_blocks_that_guess_later_tokens_are_not_read(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", MIXTURES_FOR_GGUF["glm4_moe"])
    path = written(ours, tmp_path / "model.gguf")
    more = {"blk.3.nextn.enorm.weight": (39,), "blk.3.attn_norm.weight": (39,)}
    counts = {"glm4moe.block_count": 4, "glm4moe.nextn_predict_layers": 1}
    theirs = open_checkpoint(rewritten(path, tmp_path / "b.gguf", counts, more))
    assert str(theirs.plan) == str(ours.plan)
    with pytest.raises(CheckpointError, match="no glm4_moe model has"):
        open_checkpoint(rewritten(path, tmp_path / "c.gguf", {"glm4moe.block_count": 4}, more))


UP = "model.layers.{}.self_attn.kv_b_proj"


def older(ours: Checkpoint, path: Path, out: Path, both: bool) -> Path:
    """A file as they were before heads lay apart, or for a while with heads both ways."""
    heads, sizes = 3, {"key": 17, "value": 13}
    keys: dict[str, Any] = {f"deepseek2.attention.{kind}_length": sizes[kind] for kind in sizes}
    keys |= {f"deepseek2.attention.{kind}_length_mla": None for kind in sizes}
    keys |= {"deepseek2.attention.head_count_kv": heads}
    tensors: dict[str, Any] = {}
    for block in range(3):
        read, name = ours.tensors.read_float, UP.format(block)
        parts: list[Any] = []
        for head in range(heads):
            parts.append(read(f"{name}.{head}.key.weight").T)
            parts.append(read(f"{name}.{head}.value.weight"))
        tensors[f"blk.{block}.attn_kv_b.weight"] = np.concatenate(parts)
        if not both:
            tensors |= {f"blk.{block}.attn_{kind}_b.weight": None for kind in "kv"}
    return rewritten(path, out, keys, tensors)


@pytest.mark.parametrize("both", [False, True])
def test_heads_of_a_latent_are_read_apart_and_in_one_matrix(both: bool, tmp_path: Path) -> None:
    ours = source(tmp_path / "source", MIXTURES_FOR_GGUF["deepseek_v3"])
    path = written(ours, tmp_path / "model.gguf")
    stack = read_gguf(path).tensors["blk.1.attn_k_b.weight"]
    assert stack.shape == (3, 21, 11)
    theirs = open_checkpoint(older(ours, path, tmp_path / "older.gguf", both))
    assert str(theirs.plan) == str(ours.plan)
    for spec in ours.plan.tensors():
        expected = ours.tensors.read_float(spec.name)
        np.testing.assert_array_equal(theirs.tensors.read_float(spec.name), expected, spec.name)
        np.testing.assert_array_equal(
            theirs.tensors.read_float(spec.name, slice(2, 5)), expected[2:5], spec.name
        )


def test_codes_of_a_latent_in_one_matrix_are_read(tmp_path: Path) -> None:
    """Rows of values stay codes; those of keys, which turn, become floats."""
    shape = MIXTURES_FOR_GGUF["deepseek_v3"] | {"kv_lora_rank": 32, "num_hidden_layers": 1}
    ours = source(tmp_path / "source", shape | {"first_k_dense_replace": 1})
    path, name = written(ours, tmp_path / "a.gguf"), "blk.0.attn_kv_b.weight"
    rng, rows = np.random.default_rng(0), 3 * (11 + 13)
    raw = rng.integers(0, 256, (rows, 34), np.uint8)
    raw[:, :2] = np.full((rows, 1), 0.01, np.float16).view(np.uint8)
    file = read_gguf(path)
    tensors = [
        TensorToWrite(each.name, "F32", each.shape, lambda each=each: [each.raw.read()])  # type: ignore[misc]
        for each in file.tensors.values()
        if "_k_b" not in each.name and "_v_b" not in each.name
    ]
    write_container(
        tmp_path / "b.gguf",
        file.metadata.values,
        [*tensors, TensorToWrite(name, "Q8_0", (rows, 32), lambda: [raw])],
    )
    theirs = open_checkpoint(tmp_path / "b.gguf").tensors
    whole = (raw[:, 2:].view(np.int8) * np.float32(np.float16(0.01))).reshape(3, 24, 32)
    for head in range(3):
        key, value = (
            theirs.entry(f"{UP.format(0)}.{head}.{kind}.weight") for kind in ("key", "value")
        )
        assert isinstance(value, StoredCodes)
        np.testing.assert_array_equal(value.read_float(), whole[head, 11:])
        np.testing.assert_array_equal(value.read_float(slice(3, 9)), whole[head, 14:20])
        np.testing.assert_array_equal(key.read_float(), whole[head, :11].T)


DEEPSEEK2: dict[str, tuple[str, dict[str, Any], str]] = {
    "a large epsilon": ("deepseek_v3", {"attention.layer_norm_rms_epsilon": 1e-5}, "1e-06, as the"),
    "no rank": ("deepseek_v3", {"attention.kv_lora_rank": None}, "kv_lora_rank"),
    "heads that rotate whole": ("deepseek_v3", {"attention.key_length_mla": 6}, "more than the 6"),
    "softmax of normalised shares": ("deepseek_v2", {"expert_weights_norm": True}, "weights_norm"),
    "groups by their best": ("deepseek_v2", {"expert_group_count": 4}, "expert_group_count"),
    "scores of another function": ("deepseek_v3", {"expert_gating_func": 3}, "expert_gating_func"),
    "scores not sharpened": ("deepseek_v3", {"rope.scaling.yarn_log_multiplier": 0.0}, "sharpened"),
}


@pytest.mark.parametrize("case", DEEPSEEK2)
def test_keys_of_latent_models_that_cannot_be_are_refused(case: str, tmp_path: Path) -> None:
    name, change, message = DEEPSEEK2[case]
    path = written(source(tmp_path / "source", MIXTURES_FOR_GGUF[name]), tmp_path / "a.gguf")
    keys = {f"deepseek2.{key}": value for key, value in change.items()}
    with pytest.raises(CheckpointError, match=message) as refusal:
        open_checkpoint(rewritten(path, tmp_path / "b.gguf", keys, {}))
    assert "\n" not in str(refusal.value)


def test_a_router_of_one_score_may_be_a_vector(tmp_path: Path) -> None:
    """llama.cpp's converter leaves sizes of 1 out."""
    ours = source(tmp_path / "source", MIXTURES_FOR_GGUF["qwen2_moe"])
    path = written(ours, tmp_path / "model.gguf")
    name, gate = "blk.1.ffn_gate_inp_shexp.weight", "model.layers.1.mlp.shared_expert_gate.weight"
    vector = ours.tensors.read_float(gate)[0]
    theirs = open_checkpoint(rewritten(path, tmp_path / "b.gguf", {}, {name: vector}))
    np.testing.assert_array_equal(theirs.tensors.read_float(gate), vector[None])


def test_another_chunk_than_llama_cpp_has_is_refused(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", MIXTURES_FOR_GGUF["llama4_text"])
    path = written(ours, tmp_path / "model.gguf")
    keys = {"llama4.attention.sliding_window": 0}
    with pytest.raises(CheckpointError, match=r"sliding_window: .*expected 8192"):
        open_checkpoint(rewritten(path, tmp_path / "b.gguf", keys, {}))


INEXPRESSIBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "raw shares": ("qwen3_moe", {"norm_topk_prob": False}, "qwen3moe cannot express"),
    "shares that sum to 1": ("qwen2_moe", {"norm_topk_prob": True}, "qwen2moe cannot express"),
    "blocks without experts": ("qwen3_moe", {"mlp_only_layers": [1]}, "qwen3moe cannot express"),
    "clipped": ("olmoe", {"clip_qkv": 0.6}, "olmoe cannot express"),
    "fewer keys": ("olmoe", {"num_key_value_heads": 2}, "expected 4 key-value heads, found 2"),
    "groups of experts": ("glm4_moe", {"n_group": 4, "topk_group": 2}, "glm4moe cannot express"),
    "groups that are all chosen": ("deepseek_v3", {"topk_group": 4}, "fewer groups"),
    "groups by their best": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy"},
        "deepseek2 cannot express",
    ),
    "halves that rotate": ("deepseek_v3", {"rope_interleave": False}, "deepseek2 cannot express"),
    "a large epsilon": ("deepseek_v3", {"rms_norm_eps": 1e-5}, "an epsilon of 1e-06"),
    "queries without a rank": ("deepseek_v2", {"q_lora_rank": None}, "or 26 or 27 blocks"),
    "scores not sharpened": ("deepseek_v3", {"rope_scaling": YARN}, "one number for mscale"),
    "short chunks": ("llama4_text", {"attention_chunk_size": 99}, "llama4 cannot express"),
    "experts here and there": ("llama4_text", {"moe_layers": [2]}, "llama4 cannot express"),
    "heads not normalised": ("llama4_text", {"use_qk_norm": False}, "llama4 cannot express"),
    "another clamp": ("gpt_oss", {"swiglu_limit": 0.8}, "gpt-oss cannot express"),
    "rounded yarn": (
        "gpt_oss",
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
        "no such rotary scaling",
    ),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_what_an_architecture_cannot_express_is_refused(case: str, tmp_path: Path) -> None:
    name, change, message = INEXPRESSIBLE[case]
    ours = source(tmp_path / "source", MIXTURES_FOR_GGUF[name] | change)
    with pytest.raises(UsageError, match=message):
        written(ours, tmp_path / "model.gguf")
