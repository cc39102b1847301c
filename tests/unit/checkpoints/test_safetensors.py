"""Reading and writing safetensors files: what comes back is what went in, here and elsewhere.

In: arrays of every dtype. Out: files that the safetensors library reads, and arrays read one at a
time or some rows of them. Hostile files are in tests/malformed.
"""

from __future__ import annotations

import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from crumb.checkpoints.safetensors import DTYPES, ArrayToWrite, read_header, write_file
from crumb.errors import CheckpointError


def to_write(arrays: dict[str, NDArray[Any]]) -> dict[str, ArrayToWrite]:
    return {
        name: ArrayToWrite(array.dtype, array.shape, partial(np.asarray, array))
        for name, array in arrays.items()
    }


def samples() -> dict[str, NDArray[Any]]:
    """One array of each dtype, of several ranks, one empty and one without dimensions."""
    generator = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        name: generator.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()
    }
    arrays["vector"] = np.arange(7, dtype=np.float16)
    arrays["cube"] = generator.normal(size=(2, 3, 4)).astype(np.float32)
    arrays["empty"] = np.zeros((0, 4), np.float32)
    arrays["number"] = np.array(2.5, np.float32)
    return arrays


def test_arrays_of_every_dtype_come_back_bit_for_bit(tmp_path: Path) -> None:
    arrays = samples()
    write_file(tmp_path / "x.safetensors", to_write(arrays), {"b": "2", "a": "1"})
    stored, metadata = read_header(tmp_path / "x.safetensors")
    assert metadata == {"a": "1", "b": "2"}
    assert list(stored) == list(arrays)
    for name, array in arrays.items():
        found = stored[name].read()
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes()


def test_the_safetensors_library_reads_what_was_written(tmp_path: Path) -> None:
    foreign = ("bfloat16", "float8")  # none of NumPy's own types
    arrays = {
        name: array for name, array in samples().items() if not array.dtype.name.startswith(foreign)
    }
    write_file(tmp_path / "x.safetensors", to_write(arrays), {"format": "pt"})
    found = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_the_safetensors_library_writes_is_read(tmp_path: Path) -> None:
    arrays = {"b": np.eye(4, dtype=np.float16), "a": np.arange(6, dtype=np.int64).reshape(2, 3)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", {"format": "np"})
    stored, metadata = read_header(tmp_path / "x.safetensors")
    assert metadata == {"format": "np"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name].read(), array)


@pytest.mark.parametrize(
    "rows", [slice(0, 4), slice(2, 3), slice(3, 99), slice(4, 4), slice(None), slice(-2, None)]
)
def test_some_rows_are_read_without_the_others(rows: slice, tmp_path: Path) -> None:
    matrix = np.arange(40, dtype=np.float32).reshape(5, 8)
    before = np.zeros(3, ml_dtypes.bfloat16)
    write_file(tmp_path / "x.safetensors", to_write({"before": before, "x": matrix}), {})
    stored, _ = read_header(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(stored["x"].read(rows), matrix[rows])


def test_a_row_costs_the_memory_of_a_row(tmp_path: Path) -> None:
    matrix = np.zeros((1000, 1000), np.float32)
    write_file(tmp_path / "x.safetensors", to_write({"x": matrix}), {})
    stored, _ = read_header(tmp_path / "x.safetensors")
    del matrix
    tracemalloc.start()
    stored["x"].read(slice(10, 12))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000  # two rows are 8 kB, the matrix 4 MB


def test_one_array_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Each is made when its turn comes: ten of a megabyte never lie beside each other."""
    large = {
        str(place): ArrayToWrite(np.dtype(np.float32), (250_000,), partial(np.zeros, 250_000, "f4"))
        for place in range(10)
    }
    tracemalloc.start()
    write_file(tmp_path / "x.safetensors", large, {})
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "x.safetensors").stat().st_size > 10_000_000
    assert peak_bytes < 2_500_000


def test_data_begin_at_a_multiple_of_64(tmp_path: Path) -> None:
    for length in range(1, 67):
        write_file(tmp_path / "x", to_write({"a" * length: np.zeros(2, np.float64)}), {})
        stored, _ = read_header(tmp_path / "x")
        assert stored["a" * length].offset_bytes % 64 == 0


def test_mapped_arrays_of_every_dtype_are_those_that_are_read(tmp_path: Path) -> None:
    write_file(tmp_path / "x.safetensors", to_write(samples()), {})
    stored, _ = read_header(tmp_path / "x.safetensors")
    for name, array in samples().items():
        mapped = stored[name].map()
        assert type(mapped) is np.ndarray
        assert mapped.dtype == array.dtype
        assert mapped.shape == array.shape
        assert mapped.tobytes() == array.tobytes()
        with pytest.raises(ValueError, match="read-only"):
            mapped[...] = 0


def test_a_mapped_array_costs_no_memory_and_outlives_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_file(path, to_write({"x": np.full((1000, 1000), 7.0, np.float32)}), {})
    stored, _ = read_header(path)
    tracemalloc.start()
    mapped = stored["x"].map()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000  # the array has 4 MB
    path.unlink()
    assert (mapped == 7).all()


def test_a_file_that_was_cut_or_removed_since_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_file(path, to_write({"x": np.zeros(100, np.float32)}), {})
    stored, _ = read_header(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"ends inside a tensor.*truncated"):
        stored["x"].map()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors: No such file"):
        stored["x"].map()


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    arrays = to_write(samples())
    for name, metadata in (("one", {"a": "1", "b": "2"}), ("two", {"b": "2", "a": "1"})):
        write_file(tmp_path / name, arrays, metadata)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_file(path, to_write({"x": np.zeros(3, np.float32)}), {})
    before = path.read_bytes()

    def fail() -> NDArray[Any]:
        raise KeyboardInterrupt

    broken = to_write({"x": np.ones(3, np.float32)})
    broken["y"] = ArrayToWrite(np.dtype(np.float32), (3,), fail)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, broken, {})
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["x.safetensors"]
