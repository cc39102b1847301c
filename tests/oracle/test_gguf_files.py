"""GGUF files against gguf-py: it reads what we write, and we read what it writes.

In: the embedded model and tiny ones of every architecture. Out: equal metadata, names, types and
bytes, and names that gguf-py gives these architectures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recurrent_configurations import HYBRIDS_FOR_GGUF
from tiny_models import GPT_NEOX, LLAMA, LLAMA3, QWEN2, WHOLE_HEADS, write_model

from crumb.architectures.registry import families
from crumb.checkpoints.gguf import writer
from crumb.checkpoints.gguf.architecture import BARE, names_of
from crumb.checkpoints.gguf.architecture_rows import ARCHITECTURE_OF_FAMILY
from crumb.checkpoints.gguf.container import TensorToWrite, read_gguf, write_container
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.writer import encode_plain, write_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.embedded import MODELS
from crumb.formats.layouts.gguf_types import GGUF_TYPES
from crumb.tokenizer.tokenizer import load_tokenizer

pytestmark = pytest.mark.oracle

gguf = pytest.importorskip("gguf")

TINY: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"attention_bias": True},
    "llama3": LLAMA | WHOLE_HEADS | {"rope_scaling": LLAMA3},
    "qwen2": QWEN2 | {"use_sliding_window": False},
    "gptneox": GPT_NEOX,
    "mamba2": HYBRIDS_FOR_GGUF["mamba2"],
    "granitehybrid": HYBRIDS_FOR_GGUF["granitemoehybrid"],
    "lfm2moe": HYBRIDS_FOR_GGUF["lfm2_moe"] | {"tie_embedding": True},
    "qwen3next": HYBRIDS_FOR_GGUF["qwen3_next"],
}


def contents(reader: Any) -> dict[str, Any]:
    """The metadata as gguf-py reads it."""
    return {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }


def check_same(path: Path) -> Any:
    """Both readers find the same metadata and tensors; gguf-py's reader."""
    reader, ours = gguf.GGUFReader(path), read_gguf(path)
    theirs = contents(reader)
    assert list(theirs) == list(ours.metadata.values)
    for key, value in ours.metadata.values.items():
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        assert plain == theirs[key], key
    assert [tensor.name for tensor in reader.tensors] == list(ours.tensors)
    for tensor in reader.tensors:
        found = ours.tensors[tensor.name]
        assert found.type.name == tensor.tensor_type.name
        assert found.shape == tuple(int(size) for size in tensor.shape[::-1])
        assert (found.raw.offset_bytes, found.size_bytes) == (tensor.data_offset, tensor.n_bytes)
        np.testing.assert_array_equal(found.raw.read().reshape(-1), bytes_of(tensor))
    return reader


def bytes_of(tensor: Any) -> Any:
    return np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)


def test_the_embedded_model_is_read_by_gguf_py(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MODELS["novella-7m"])
    types = {spec.name: "F16" for spec in checkpoint.plan.tensors() if spec.matrix}
    out = tmp_path / "novella.gguf"
    write_gguf(checkpoint, out, types, encode_plain(checkpoint), "novella")
    metadata = contents(check_same(out))
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert metadata["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert len(metadata["tokenizer.ggml.tokens"]) == checkpoint.plan.vocabulary
    again = open_checkpoint(out)
    text = "Once upon a time there was a café, and 1234 cats."
    expected = load_tokenizer(checkpoint.files).encode(text)
    assert load_tokenizer(again.files).encode(text) == expected


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_are_read_by_gguf_py(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "tokenizer_metadata", lambda files, configuration: {})
    checkpoint = open_checkpoint(write_model(tmp_path, TINY[name]))
    types = {spec.name: "F32" for spec in checkpoint.plan.tensors() if spec.matrix}
    out = tmp_path / "tiny.gguf"
    write_gguf(checkpoint, out, types, encode_plain(checkpoint), "tiny")
    reader = check_same(out)
    architecture = contents(reader)["general.architecture"]
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    blocks = contents(reader)[f"{architecture}.block_count"]
    known = gguf.get_tensor_name_map(numbers[architecture], blocks)
    for tensor in reader.tensors:
        base, _, kind = tensor.name.rpartition(".")
        if kind not in ("weight", "bias"):
            base = tensor.name
        assert known.get_name(base) == base, f"{tensor.name} is no tensor of {architecture}"


UNNAMED = (
    ("granitehybrid", "gate_up"),
    ("granitehybrid", "down"),
    ("qwen3next", "delta_in"),
    ("lfm2moe", "head"),
)
"""Roles whose tensors converters name themselves, and a head that is always tied there."""


def test_our_names_are_what_gguf_py_maps_ours_to() -> None:
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    for model_type, row in ARCHITECTURE_OF_FAMILY.items():
        if row.name == "rwkv7":  # its converter puts other names in place of those of its files
            continue
        known = gguf.get_tensor_name_map(numbers[row.name], 3)
        for name in names_of(row, families()[model_type], 3):
            if (name.role == "head" and row.tied) or name.role in row.from_blocks:
                continue
            if (row.name, name.role) in UNNAMED or name.role in {*row.together, *row.slabs}:
                continue
            # Converters take these off before they look a name up.
            spellings = (name.ours, name.ours.removeprefix("transformer."))
            spellings += (name.ours.removesuffix("_bias"), name.ours.replace("dt_bias", "dt_proj"))
            found = [known.get_name(each, (".weight", ".bias")) for each in spellings]
            if name.role in BARE:
                found = [f"{each}.{BARE[name.role]}".rstrip(".") for each in found]
            assert name.theirs in found, name


def test_every_type_of_value_is_read_by_gguf_py(tmp_path: Path) -> None:
    values: dict[str, Value] = {
        "general.architecture": "llama",
        "whole": 2**31,
        "negative": -3,
        "number": 0.1,
        "flag": False,
        "texts": ["ä", "", "c"],
        "bytes": np.array([1, 2], np.uint8),
        "shorts": np.array([-1, 2], np.int16),
        "longs": np.array([2**63], np.uint64),
        "doubles": np.array([0.1], np.float64),
        "flags": np.array([True, False]),
    }
    write_container(tmp_path / "values.gguf", values, [])
    check_same(tmp_path / "values.gguf")


@pytest.mark.parametrize("name", sorted(GGUF_TYPES))
def test_blocks_of_every_type_lie_where_gguf_py_looks_for_them(name: str, tmp_path: Path) -> None:
    numbers = {number.name: number for number in gguf.GGMLQuantizationType}
    if name not in numbers:
        pytest.skip(f"this gguf-py has no {name}")
    row = GGUF_TYPES[name]
    raw = np.random.default_rng(3).integers(0, 60, (3, 2 * row.block_bytes), dtype=np.uint8)
    tensor = TensorToWrite("a.weight", name, (3, 2 * row.block_weights), lambda: [raw])
    write_container(tmp_path / "blocks.gguf", {"general.architecture": "llama"}, [tensor])
    check_same(tmp_path / "blocks.gguf")


def test_what_gguf_py_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    theirs = gguf.GGUFWriter(path, "llama")
    theirs.add_custom_alignment(64)
    theirs.add_block_count(1)
    theirs.add_token_list(["a", "b"])
    theirs.add_token_scores([0.5, -1.5])
    theirs.add_array("numbers", [1, 2, 3])
    theirs.add_bool("flag", True)
    matrix = np.random.default_rng(4).normal(0, 1, (5, 32)).astype(np.float32)
    theirs.add_tensor("plain", matrix)
    quantized = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
    theirs.add_tensor("packed", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_tensors_to_file()
    theirs.close()
    check_same(path)
