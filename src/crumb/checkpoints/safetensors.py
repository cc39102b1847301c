"""Safetensors files: a checked header, tensors read one at a time, a writer that streams.

In: a path. Out: entries with dtype, shape and place; arrays read with plain reads, so that a tensor
which was dropped costs no memory, or mapped, so that a model runs from the file as it lies.
Refuses headers that are huge, malformed, overlap, leave holes or point past the end.
Source: the safetensors format description.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError
from crumb.files.atomic_file import atomic_file
from crumb.files.mapped_file import copy_bytes, map_bytes
from crumb.files.read_errors import read_errors

LARGEST_HEADER_BYTES = 100_000_000

DATA_ALIGNMENT_BYTES = 64
"""Where the first array of a file we write begins: a multiple of this, a cache line."""

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class _HeaderEntry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class StoredArray:
    """Where one array lies."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset_bytes: int  # from the start of the file
    size_bytes: int

    @property
    def source(self) -> str:
        """What the type is called where the array lies."""
        return self.dtype.name

    @property
    def used_bytes(self) -> int:
        """In memory, where it is read or mapped."""
        return self.size_bytes

    @property
    def lies_as_floats(self) -> bool:
        """Whether the file holds weights here, and not codes to make them of."""
        return True

    def read_float(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Some rows in f32. Raises: CheckpointError."""
        with np.errstate(over="ignore"):  # an f64 beyond f32 becomes infinite, which is refused
            return self.read(rows if self.shape else None).astype(np.float32, copy=False)

    def read(self, rows: slice | None = None) -> NDArray[Any]:
        """The array, or some of its rows, freshly allocated. Raises: CheckpointError."""
        shape, offset = self.shape, self.offset_bytes
        if rows is not None:
            begin, end, _ = rows.indices(self.shape[0])
            row_bytes = self.size_bytes // self.shape[0]
            shape, offset = (end - begin, *self.shape[1:]), offset + begin * row_bytes
        array = np.empty(shape, self.dtype)
        self._read_into(array, offset)
        return array

    def read_into(self, array: NDArray[Any]) -> None:
        """The whole array into memory of the caller's. Raises: CheckpointError."""
        assert array.nbytes == self.size_bytes, "as large as what is stored"
        self._read_into(array, self.offset_bytes)

    def _read_into(self, array: NDArray[Any], offset: int) -> None:
        view: memoryview = array.reshape(-1).view(np.uint8).data
        with read_errors(self.path), self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(
                        "the file ends inside a tensor",
                        where=f"{self.path} at byte {offset + done}",
                        expected=f"{len(view) - done} more bytes",
                        found=0,
                        do="The file is truncated: copy or download it again",
                    )
                done += count

    def map(self, at_once: bool = True) -> NDArray[Any]:
        """The array where it lies in the file, read-only. Raises: CheckpointError, DoesNotFit."""
        raw = map_bytes(self.path, self.offset_bytes, self.size_bytes, at_once)
        return raw.view(self.dtype).reshape(self.shape)

    def read_columns(self, columns: slice) -> NDArray[Any]:
        """Some columns of a matrix, freshly allocated. Raises: CheckpointError, DoesNotFit."""
        rows, row_bytes = self.shape[0], self.dtype.itemsize * self.shape[1]
        begin, end, _ = columns.indices(self.shape[1])
        inside = slice(begin * self.dtype.itemsize, max(begin, end) * self.dtype.itemsize)
        raw = copy_bytes(self.path, self.offset_bytes, (rows, row_bytes), inside)
        return raw.view(self.dtype)


def read_header(path: Path) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Every array of a file and the file's metadata, all of it checked.

    Raises: CheckpointError, naming the file, the tensor and the offset.
    """
    with read_errors(path), path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or length > min(file_bytes - 8, LARGEST_HEADER_BYTES):
            raise CheckpointError(
                "the header reaches past the end of the file",
                where=f"{path} at byte 0",
                expected=f"a header of at most {max(file_bytes - 8, 0)} bytes",
                found=length if file_bytes >= 8 else f"a file of {file_bytes} bytes",
                do="The file is truncated or no safetensors file: copy or download it again",
            )
        raw = file.read(length)
    entries, metadata = _parse(raw, path)
    arrays = {name: _check(name, entry, path, 8 + length) for name, entry in entries.items()}
    _check_layout(arrays, path, 8 + length, file_bytes)
    return arrays, metadata


def _parse(raw: bytes, path: Path) -> tuple[dict[str, _HeaderEntry], dict[str, str]]:
    try:
        header = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(
            header.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str]
        )
        entries = {
            name: msgspec.json.decode(entry, type=_HeaderEntry) for name, entry in header.items()
        }
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"the header is malformed: {error}", where=f"{path} at byte 8"
        ) from error
    return entries, metadata


def _check(name: str, entry: _HeaderEntry, path: Path, data_start: int) -> StoredArray:
    begin, end = entry.data_offsets
    where = f"{path}: {name}"
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            "unknown dtype",
            where=where,
            expected=f"one of {', '.join(DTYPES)}",
            found=repr(entry.dtype[:40]),
        )
    if len(entry.shape) > 8 or any(size < 0 for size in entry.shape):
        raise CheckpointError("impossible shape", where=where, found=str(entry.shape)[:80])
    size_bytes = prod(entry.shape) * dtype.itemsize
    if not 0 <= begin <= end or end - begin != size_bytes:
        raise CheckpointError(
            "offsets do not match the shape",
            where=where,
            expected=f"{size_bytes} bytes for {entry.dtype} {entry.shape}",
            found=f"offsets {begin} to {end}",
        )
    return StoredArray(path, dtype, tuple(entry.shape), data_start + begin, size_bytes)


def _check_layout(
    arrays: Mapping[str, StoredArray], path: Path, data_start: int, file_bytes: int
) -> None:
    """Arrays must follow each other without holes or overlap and end with the file."""
    for name, array in arrays.items():
        end = array.offset_bytes + array.size_bytes
        if end > file_bytes:
            raise CheckpointError(
                "a tensor reaches past the end of the file",
                where=f"{path}: {name}",
                expected=f"at most {file_bytes} bytes",
                found=end,
                do="The file is truncated: copy or download it again",
            )
    position = data_start
    for name, array in sorted(arrays.items(), key=lambda item: _place(item[1])):
        end = array.offset_bytes + array.size_bytes
        if array.offset_bytes != position:
            raise CheckpointError(
                "a tensor overlaps another or follows a hole",
                where=f"{path}: {name}",
                expected=f"bytes from {position}",
                found=f"{array.offset_bytes} to {end}",
                do="The file is damaged: copy or download it again",
            )
        position = end
    if position != file_bytes:
        raise CheckpointError(
            "the file does not end where its last tensor does",
            where=path,
            expected=f"{position} bytes",
            found=file_bytes,
        )


def _place(array: StoredArray) -> tuple[int, int]:
    return array.offset_bytes, array.size_bytes


@dataclass(frozen=True)
class ArrayToWrite:
    """One array of a file to be written; its bytes are fetched when their turn comes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def array_in_memory(array: NDArray[Any]) -> ArrayToWrite:
    """An array that is there already."""
    return ArrayToWrite(array.dtype, array.shape, lambda: array)


def common_dtype(arrays: Sequence[ArrayToWrite]) -> np.dtype[Any]:
    """That of arrays which become one; f32 where they differ."""
    dtypes = {array.dtype for array in arrays}
    return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)


def encode_header(arrays: Mapping[str, ArrayToWrite], metadata: Mapping[str, str]) -> bytes:
    """What a file begins with, its own length included; the arrays follow."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name, array in arrays.items():
        end = position + array.size_bytes
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = msgspec.json.encode(header)
    raw += b" " * (-(8 + len(raw)) % DATA_ALIGNMENT_BYTES)
    return len(raw).to_bytes(8, "little") + raw


def write_file(
    path: Path,
    arrays: Mapping[str, ArrayToWrite],
    metadata: Mapping[str, str],
    alone: bool = False,
) -> None:
    """Write a file, one array in memory at a time: to a temporary name, synced, then renamed.

    Raises: OutputConflict when `alone` and another run is writing it.
    """
    with atomic_file(path, alone) as file:
        file.write(encode_header(arrays, metadata))
        for array in arrays.values():
            file.write(np.ascontiguousarray(array.read()).reshape(-1).view(np.uint8).data)
