"""Experts in GGUF: all of a block in one tensor, each read where it lies, written in order.

In: tiny mixtures as GGUF files. Out: the same weights; what does not fit is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixture_configurations import MIXTURES_FOR_GGUF
from tiny_models import write_model

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.gguf import writer
from crumb.checkpoints.gguf.container import TensorToWrite, read_gguf, write_container
from crumb.checkpoints.gguf.writer import TypeChoice, encode_plain, export_gguf, write_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import StoredCodes, TensorMap
from crumb.errors import CheckpointError, UsageError
from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, Scales, SolveSettings

WIDE = MIXTURES_FOR_GGUF["mixtral"] | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
DOWN = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
EXPERTS = 5


@pytest.fixture(autouse=True)
def _without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "tokenizer_metadata", lambda files, configuration: {})


def source(folder: Path, configuration: dict[str, Any]) -> Checkpoint:
    folder.mkdir()
    return open_checkpoint(write_model(folder, configuration))


def written(checkpoint: Checkpoint, out: Path) -> Path:
    types = {spec.name: "F32" for spec in checkpoint.plan.tensors() if spec.matrix}
    write_gguf(checkpoint, out, types, encode_plain(checkpoint), "tiny")
    return out


def rewritten(path: Path, out: Path, metadata: dict[str, Any], shapes: dict[str, Any]) -> Path:
    """A file with other metadata, and with tensors of other shapes or of new names."""
    file = read_gguf(path)
    stored = {name: (each.shape, each.raw.read()) for name, each in file.tensors.items()}
    stored |= {
        name: (shape, np.zeros(4 * int(np.prod(shape)), np.uint8)) for name, shape in shapes.items()
    }
    tensors = [
        TensorToWrite(name, "F32", shape, lambda raw=raw: [raw])  # type: ignore[misc]
        for name, (shape, raw) in stored.items()
    ]
    write_container(out, {**file.metadata.values, **metadata}, tensors)
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


INEXPRESSIBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "raw shares": ("qwen3_moe", {"norm_topk_prob": False}, "qwen3moe cannot express"),
    "shares that sum to 1": ("qwen2_moe", {"norm_topk_prob": True}, "qwen2moe cannot express"),
    "blocks without experts": ("qwen3_moe", {"mlp_only_layers": [1]}, "qwen3moe cannot express"),
    "clipped": ("olmoe", {"clip_qkv": 0.6}, "olmoe cannot express"),
    "fewer keys": ("olmoe", {"num_key_value_heads": 2}, "expected 4 key-value heads, found 2"),
    "groups of experts": ("glm4_moe", {"n_group": 4, "topk_group": 2}, "glm4moe cannot express"),
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
