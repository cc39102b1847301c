"""What GGUF files of models with a state hold: decays, shapes, pieces, heads of each block.

In: tiny models of each architecture. Out: numbers as llama.cpp has them; one matrix of several
tensors, in codes or floats; files of older programs; refusals of what cannot be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_exports import source, written
from numpy.typing import NDArray
from recurrent_configurations import HYBRIDS_FOR_GGUF
from tiny_models import make_tokens

from crumb.checkpoints.gguf import model as gguf_model
from crumb.checkpoints.gguf.architecture_rows import ARCHITECTURE_OF_FAMILY
from crumb.checkpoints.gguf.container import GgufFile, TensorToWrite, read_gguf, write_container
from crumb.checkpoints.gguf.writer import TypeChoice, export_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats
from crumb.errors import CheckpointError
from crumb.run.model import Model

GRANITE = HYBRIDS_FOR_GGUF["granitemoehybrid-dense"] | {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "shared_intermediate_size": 96,
    "mamba_n_heads": 8,
    "mamba_d_state": 16,
}
LEFT_OUT: Any = object()
FUSED = "model.layers.1.shared_mlp.input_linear.weight"


pytestmark = pytest.mark.usefixtures("without_tokenizer")


def numbers(file: GgufFile, name: str) -> NDArray[np.float32]:
    """A tensor of F32 in its shape there."""
    tensor = file.tensors[name]
    return tensor.raw.read().view(np.float32).reshape(tensor.shape)


def copied(file: GgufFile, out: Path, changes: dict[str, Any]) -> Path:
    """The same file with other keys, or other tensors: (type, array)."""
    metadata = file.metadata.values | {k: v for k, v in changes.items() if k not in file.tensors}
    metadata = {key: value for key, value in metadata.items() if value is not LEFT_OUT}
    tensors = []
    for name, tensor in file.tensors.items():
        type_name, raw, shape = tensor.type.name, tensor.raw.read(), tensor.shape
        if name in changes:
            type_name, array = changes[name]
            raw, shape = array.view(np.uint8).reshape(len(array), -1), array.shape
        tensors.append(TensorToWrite(name, type_name, shape, lambda raw=raw: [raw]))  # type: ignore[misc]
    write_container(out, metadata, tensors)
    return out


def test_a_scan_lies_as_its_decays_its_taps_and_a_row_for_each_group(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", HYBRIDS_FOR_GGUF["mamba2"])
    file = read_gguf(written(ours, tmp_path / "model.gguf"))
    read, mixer = ours.tensors.read_float, "backbone.layers.2.mixer"
    rate = read(f"{mixer}.A_log")
    np.testing.assert_allclose(numbers(file, "blk.2.ssm_a"), -np.exp(rate)[:, None], rtol=1e-6)
    np.testing.assert_array_equal(numbers(file, "blk.2.ssm_d"), read(f"{mixer}.D")[:, None])
    np.testing.assert_array_equal(numbers(file, "blk.2.ssm_dt.bias"), read(f"{mixer}.dt_bias"))
    taps = read(f"{mixer}.conv1d.weight")
    np.testing.assert_array_equal(numbers(file, "blk.2.ssm_conv1d.weight"), taps[:, 0])
    norm = numbers(file, "blk.2.ssm_norm.weight")
    assert norm.shape == (3, 28)
    np.testing.assert_array_equal(norm.ravel(), read(f"{mixer}.norm.weight"))
    values = file.metadata.values
    assert values["mamba2.ssm.inner_size"] == 84
    assert values["mamba2.attention.head_count"] == values["mamba2.feed_forward_length"] == 0


@pytest.mark.parametrize(("name", "attends"), [("lfm2", [0, 1, 0]), ("bamba-biases", [3, 0, 3])])
def test_key_value_heads_are_said_for_each_block(
    name: str, attends: list[int], tmp_path: Path
) -> None:
    file = read_gguf(
        written(source(tmp_path / "source", HYBRIDS_FOR_GGUF[name]), tmp_path / "model.gguf")
    )
    architecture = file.metadata.text("general.architecture")
    heads = file.metadata.values[f"{architecture}.attention.head_count_kv"]
    assert np.asarray(heads).tolist() == attends


def test_gate_and_up_of_one_matrix_are_two_tensors(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", GRANITE)
    file = read_gguf(written(ours, tmp_path / "model.gguf"))
    both = ours.tensors.read_float(FUSED)
    np.testing.assert_array_equal(numbers(file, "blk.1.ffn_gate.weight"), both[:96])
    np.testing.assert_array_equal(numbers(file, "blk.1.ffn_up.weight"), both[96:])
    mixture = source(tmp_path / "mixture", HYBRIDS_FOR_GGUF["granitemoehybrid"])
    names = read_gguf(written(mixture, tmp_path / "mixture.gguf")).tensors
    assert {"blk.1.ffn_gate_shexp.weight", "blk.1.ffn_down_shexp.weight"} <= names.keys()


def test_pieces_of_one_type_are_codes_and_others_floats(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", GRANITE)
    out = tmp_path / "q8.gguf"
    export_gguf(ours, out, TypeChoice("Q8_0"), "tiny", lambda report: None)
    quantized = open_checkpoint(out).tensors
    entry, expected = quantized.entry(FUSED), ours.tensors.read_float(FUSED)
    assert isinstance(entry, StoredCodes)
    assert (entry.source, entry.shape) == ("Q8_0", (192, 64))
    whole = quantized.read_float(FUSED)
    np.testing.assert_allclose(whole, expected, atol=np.abs(expected).max() / 100)
    np.testing.assert_array_equal(quantized.read_float(FUSED, slice(90, 101)), whole[90:101])
    up = np.ascontiguousarray(expected[96:])
    mixed = copied(read_gguf(out), tmp_path / "mixed.gguf", {"blk.1.ffn_up.weight": ("F32", up)})
    floats = open_checkpoint(mixed).tensors
    assert isinstance(floats.entry(FUSED), StoredFloats)
    np.testing.assert_array_equal(floats.read_float(FUSED)[96:], up)
    np.testing.assert_array_equal(floats.read_float(FUSED, slice(0, 96)), whole[:96])


def test_a_delta_rule_is_read_from_two_tensors_or_from_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = source(tmp_path / "source", HYBRIDS_FOR_GGUF["qwen3_next"])
    file = read_gguf(written(ours, tmp_path / "two.gguf"))
    together = ours.tensors.read_float("model.layers.0.linear_attn.in_proj_qkvz.weight")
    # A key head has its query of 12, its key of 12, 2 values of 12 and their gates.
    heads = together.reshape(2, 12 + 12 + 24 + 24, -1)
    parts = (heads[:, :12], heads[:, 12:24], heads[:, 24:48])
    joined = np.concatenate([part.reshape(-1, together.shape[1]) for part in parts])
    np.testing.assert_array_equal(numbers(file, "blk.0.attn_qkv.weight"), joined)
    gates = heads[:, 48:].reshape(-1, together.shape[1])
    np.testing.assert_array_equal(numbers(file, "blk.0.attn_gate.weight"), gates)
    row = ARCHITECTURE_OF_FAMILY["qwen3_next"]
    older = replace(row, pieces=lambda reader: {})
    monkeypatch.setattr(gguf_model, "ARCHITECTURE_OF_FAMILY", {"qwen3_next": older})
    assert "blk.0.ssm_in.weight" in read_gguf(written(ours, tmp_path / "one.gguf")).tensors
    tokens = make_tokens(HYBRIDS_FOR_GGUF["qwen3_next"])[:1, :20]
    logits = [
        Model(open_checkpoint(tmp_path / name)).logits(tokens) for name in ("one.gguf", "two.gguf")
    ]
    np.testing.assert_array_equal(*logits)


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for spec in checkpoint.plan.tensors():
        checkpoint.tensors.read_float(spec.name)


KV = "lfm2.attention.head_count_kv"

WRONG: dict[str, tuple[str, Callable[[GgufFile], dict[str, Any]], str]] = {
    "too few blocks": ("lfm2", lambda file: {KV: np.array([0, 1], np.int32)}, "one for each block"),
    "other heads": ("lfm2", lambda file: {KV: np.array([1, 3, 0], np.int32)}, "one number in all"),
    "no heads": ("lfm2", lambda file: {KV: -1}, "head_count_kv"),
    "no inner size": (
        "mamba2",
        lambda file: {"mamba2.ssm.inner_size": LEFT_OUT},
        "ssm.inner_size",
    ),
    "an inner size between": ("mamba2", lambda file: {"mamba2.ssm.inner_size": 85}, "expand"),
    "a state that grows": (
        "mamba2",
        lambda file: {"blk.1.ssm_a": ("F32", -numbers(file, "blk.1.ssm_a"))},
        "not finite",
    ),
    "a short piece": (
        "granitemoehybrid",
        lambda file: {
            "blk.1.ffn_up_shexp.weight": ("F32", numbers(file, "blk.1.ffn_up_shexp.weight")[:70])
        },
        "does not have the shape",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_refused(wrong: str, tmp_path: Path) -> None:
    name, change, told = WRONG[wrong]
    ours = source(tmp_path / "source", HYBRIDS_FOR_GGUF[name])
    file = read_gguf(written(ours, tmp_path / "model.gguf"))
    path = copied(file, tmp_path / "wrong.gguf", change(file))
    with pytest.raises(CheckpointError, match=told) as caught:
        read_all(path)
    assert str(path) in str(caught.value)
