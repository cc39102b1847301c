"""The GGUF container: every type of value, where tensors lie, and files that appear whole or not.

In: metadata and tensors. Out: a file, and the same metadata and bytes read back from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_file import array, scalar, text, tiny_model
from numpy.typing import NDArray

from crumb.checkpoints.gguf.container import TensorToWrite, read_gguf, write_container
from crumb.checkpoints.gguf.header import Value
from crumb.errors import CheckpointError, UsageError

Bytes = NDArray[np.uint8]

LOWEST_AND_HIGHEST = {
    "u8": (0, 2**8 - 1),
    "i8": (-(2**7), 2**7 - 1),
    "u16": (0, 2**16 - 1),
    "i16": (-(2**15), 2**15 - 1),
    "u32": (0, 2**32 - 1),
    "i32": (-(2**31), 2**31 - 1),
    "u64": (0, 2**64 - 1),
    "i64": (-(2**63), 2**63 - 1),
    "f32": (-1.5, 2.0**100),
    "f64": (-1e-300, 1e300),
    "bool": (False, True),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("kind", LOWEST_AND_HIGHEST)
def test_numbers_of_every_type_are_read_alone_and_in_arrays(kind: str, path: Path) -> None:
    lowest, highest = LOWEST_AND_HIGHEST[kind]
    file = tiny_model().with_keys(
        low=scalar(kind, lowest),
        high=scalar(kind, highest),
        both=array(kind, [lowest, highest]),
        none=array(kind, []),
    )
    path.write_bytes(file.raw())
    values = read_gguf(path).metadata.values
    assert (values["low"], values["high"]) == (lowest, highest)
    assert type(values["high"]) is type(highest)
    both, none = values["both"], values["none"]
    assert isinstance(both, np.ndarray)
    assert isinstance(none, np.ndarray)
    assert both.tolist() == [lowest, highest]
    assert (none.dtype, len(none)) == (both.dtype, 0)


def test_texts_are_read_alone_and_in_arrays(path: Path) -> None:
    file = tiny_model().with_keys(
        empty=text(""), long=text("ü" * 70_000), all=array("string", ["", "a\0b", "▁日本"])
    )
    path.write_bytes(file.raw())
    values = read_gguf(path).metadata.values
    assert values["empty"] == ""
    assert values["long"] == "ü" * 70_000
    assert values["all"] == ["", "a\0b", "▁日本"]


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_tensors_lie_where_the_alignment_puts_them(alignment: int, path: Path) -> None:
    file = replace(tiny_model(), alignment=alignment)
    file = file.with_keys(general__alignment=scalar("u32", alignment))
    path.write_bytes(file.raw())
    tensors = read_gguf(path).tensors
    for tensor in file.tensors:
        assert isinstance(tensor.name, str)
        found = tensors[tensor.name]
        assert found.shape == tensor.sizes[::-1]
        assert found.raw.offset_bytes % alignment == 0
        assert found.raw.read().tobytes() == tensor.data


def test_bytes_behind_the_last_tensor_are_padding(path: Path) -> None:
    path.write_bytes(tiny_model().raw() + bytes(20))
    assert len(read_gguf(path).tensors) == len(tiny_model().tensors)


def test_a_large_vocabulary_is_read_in_a_moment(path: Path) -> None:
    """150,000 tokens with their scores, and 280,000 merges."""
    tokens = [f"▁token{index}" for index in range(150_000)]
    metadata: dict[str, Value] = {
        "tokens": tokens,
        "scores": np.arange(150_000, dtype=np.float32),
        "merges": [f"a{index} b" for index in range(280_000)],
    }
    write_container(path, metadata, [])
    begin = time.process_time()
    values = read_gguf(path).metadata.values
    seconds = time.process_time() - begin
    assert values["tokens"] == tokens
    assert seconds < 5  # a tenth of that on a slow machine; strings one by one took minutes


def vector(name: str, numbers: NDArray[np.float32]) -> TensorToWrite:
    raw = numbers.view(np.uint8)
    return TensorToWrite(name, "F32", numbers.shape, lambda: [raw])


VALUES: dict[str, Value] = {
    "whole": 7,
    "negative": -7,
    "large": 2**64 - 1,
    "very negative": -(2**63),
    "number": 0.5,
    "flag": True,
    "text": "grün",
    "texts": ["a", "", "b"],
    "floats": np.array([1.5, -2.0], np.float32),
    "integers": np.array([1, -2], np.int32),
    "bytes": np.array([0, 255], np.uint8),
    "flags": np.array([True, False]),
}


def test_what_is_written_is_read_again(path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32)
    blocks = np.arange(5 * 18, dtype=np.uint8).reshape(5, 18)
    rows = [blocks[:2], blocks[2:]]
    matrix = TensorToWrite("matrix", "Q4_0", (5, 32), lambda: rows)
    write_container(path, VALUES, [vector("first", numbers), matrix, vector("last", numbers)])
    file = read_gguf(path)
    assert list(file.metadata.values) == list(VALUES)
    for key, value in VALUES.items():
        found = file.metadata.values[key]
        np.testing.assert_array_equal(found, value)
        assert type(found) is type(value)
        if isinstance(value, np.ndarray):
            assert isinstance(found, np.ndarray)
            assert found.dtype == value.dtype
    assert list(file.tensors) == ["first", "matrix", "last"]
    assert file.tensors["matrix"].shape == (5, 32)
    np.testing.assert_array_equal(file.tensors["matrix"].raw.read(slice(1, 4)), blocks[1:4])
    for name in ("first", "last"):
        np.testing.assert_array_equal(file.tensors[name].raw.read().view(np.float32)[0], numbers)
    assert path.stat().st_size % 32 == 0


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    numbers = np.zeros(4, np.float32)
    write_container(path, {"whole": 1}, [vector("a", numbers)])
    before = path.read_bytes()

    def broken() -> Iterator[Bytes]:
        yield numbers.view(np.uint8)
        raise CheckpointError("the source is damaged")

    with pytest.raises(CheckpointError, match="the source is damaged"):
        write_container(path, {"whole": 2}, [TensorToWrite("a", "F32", (8,), broken)])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_row_in_no_whole_blocks_and_a_long_name_are_not_written(path: Path) -> None:
    with pytest.raises(UsageError, match="in_features divisible by 256, found 320"):
        write_container(path, {}, [TensorToWrite("a", "Q4_K", (2, 320), list)])
    with pytest.raises(UsageError, match="at most 63 bytes"):
        write_container(path, {}, [vector("n" * 64, np.zeros(4, np.float32))])
    assert not path.exists()
