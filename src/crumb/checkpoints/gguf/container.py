"""The GGUF container: metadata and the places of tensors, read with every claim checked; written.

In: a path, or metadata and tensors whose bytes come when their turn does. Out: a GgufFile, or a
file. Versions 2 and 3, which differ in nothing here.
Refuses other versions and byte orders, names and shapes that cannot be, types that nothing reads,
tensors that overlap, leave a hole or reach past the end; nothing is allocated on a claimed size.
Source: the GGUF format description.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import shown
from crumb.checkpoints.gguf.header import TYPES, HeaderBytes, Value, encode_string, encode_value
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.safetensors import StoredArray
from crumb.errors import CheckpointError, UsageError
from crumb.files.atomic_file import atomic_file
from crumb.files.read_errors import read_errors
from crumb.formats.layouts.gguf_types import GgufType, find_type, type_of_id

MAGIC = b"GGUF"
VERSIONS = (2, 3)
WRITTEN_VERSION = 3

ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
LARGEST_ALIGNMENT = 1 << 20

LARGEST_COUNT = 1 << 14
"""Key-values, and tensors: more than any model has."""

LONGEST_KEY_BYTES = (1 << 16) - 1
LONGEST_NAME_BYTES = 63
MOST_DIMENSIONS = 4
LARGEST_DIMENSION = 1 << 40

_U32, _U64 = TYPES[4][1], TYPES[10][1]
_LEAST_KEY_VALUE_BYTES = 8 + 1 + 4 + 1  # length, a letter, type, the smallest value
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, a letter, count, one size, type, offset


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    name: str
    type: GgufType
    shape: tuple[int, ...]  # input features last
    raw: StoredArray  # uint8 (rows, row_bytes)

    @property
    def size_bytes(self) -> int:
        return self.raw.size_bytes

    @property
    def in_features(self) -> int:
        return self.shape[-1]


@dataclass(frozen=True)
class GgufFile:
    """What a file holds."""

    path: Path
    metadata: Metadata
    tensors: Mapping[str, StoredTensor]


def read_gguf(path: Path) -> GgufFile:
    """Metadata and tensors of a file, all of it checked.

    Raises: CheckpointError, naming the file, the offset and the field.
    """
    with read_errors(path), path.open("rb") as file:
        return read_gguf_header(HeaderBytes(path, file, os.fstat(file.fileno()).st_size))


def read_gguf_header(header: HeaderBytes) -> GgufFile:
    """The same of a file that is open, or lies elsewhere. Raises: CheckpointError."""
    _check_start(header)
    return _read_header(header)


def _check_start(header: HeaderBytes) -> None:
    """Refuse what is no GGUF file of a version that is read here. Raises: CheckpointError."""
    end = header.need(4, "magic")
    if header.raw[:end][:4] != MAGIC:
        raise header.refuse("this is no GGUF file", "magic", repr(MAGIC), repr(header.raw[:4]))
    header.at = 4
    version = int(header.number(_U32, "version"))
    if version in VERSIONS:
        return
    header.at = 4
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in (1, *VERSIONS):
        raise header.refuse(
            "a big-endian file is not read", "version", "little-endian numbers", version
        )
    raise header.refuse(
        "this version of GGUF is not read", "version", " or ".join(map(str, VERSIONS)), version
    )


def _read_header(header: HeaderBytes) -> GgufFile:
    tensor_count = header.count("tensor_count", _LEAST_TENSOR_BYTES, LARGEST_COUNT)
    key_count = header.count("metadata_kv_count", _LEAST_KEY_VALUE_BYTES, LARGEST_COUNT)
    values: dict[str, Value] = {}
    alignment = DEFAULT_ALIGNMENT
    for index in range(key_count):
        key = _read_key(header, f"key {index} of {key_count}", values)
        begin = header.at
        values[key], kind = header.value(shown(key))
        if key == ALIGNMENT:
            alignment = _checked_alignment(header, begin, kind, values[key])
    claims: dict[str, _Claim] = {}
    for index in range(tensor_count):
        claim = _read_claim(header, f"tensor {index} of {tensor_count}", claims)
        claims[claim.name] = claim
    data_start = _padded(header.at, alignment)
    tensors = _placed(header, claims, data_start, alignment)
    return GgufFile(header.path, Metadata(header.path, values), tensors)


def _read_key(header: HeaderBytes, name: str, others: Mapping[str, Value]) -> str:
    begin = header.at
    key = header.string(name)
    problem = None
    if not key:
        problem = "an empty key"
    elif len(key.encode()) > LONGEST_KEY_BYTES:
        problem = "a key that is too long"
    elif key in others:
        problem = "a key that comes twice"
    if problem is not None:
        header.at = begin
        raise header.refuse(
            problem, name, f"another key of 1 to {LONGEST_KEY_BYTES} bytes", shown(key)
        )
    return key


def _checked_alignment(header: HeaderBytes, begin: int, kind: str, value: Value) -> int:
    good = kind == "u32" and isinstance(value, int) and 0 < value <= LARGEST_ALIGNMENT
    if not good or value & (value - 1):  # type: ignore[operator]
        header.at = begin
        raise header.refuse(
            "an alignment that cannot be",
            ALIGNMENT,
            f"a power of two as u32, at most {LARGEST_ALIGNMENT}",
            f"{shown(value)} as {kind}",
        )
    assert isinstance(value, int)
    return value


@dataclass(frozen=True)
class _Claim:
    """What a header says of one tensor."""

    name: str
    type: GgufType
    shape: tuple[int, ...]  # input features last
    offset: int  # from the beginning of the data
    at: int  # where the header says so

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])


def _read_claim(header: HeaderBytes, place: str, names: Mapping[str, object]) -> _Claim:
    """One tensor's line of the header. Raises: CheckpointError."""
    begin = header.at
    name = header.string(f"name of {place}")
    if not 0 < len(name.encode()) <= LONGEST_NAME_BYTES or name in names:
        header.at = begin
        problem = "a tensor name that comes twice" if name in names else "an impossible tensor name"
        expected = f"another name of 1 to {LONGEST_NAME_BYTES} bytes"
        raise header.refuse(problem, place, expected, shown(name))
    here = shown(name)[1:-1]
    at = header.at
    count = int(header.number(_U32, f"{here}: dimensions"))
    if not 0 < count <= MOST_DIMENSIONS:
        header.at = at
        raise header.refuse("an impossible shape", here, f"1 to {MOST_DIMENSIONS} sizes", count)
    at = header.at
    sizes = [int(header.number(_U64, f"{here}: dimensions")) for _ in range(count)]
    if not all(0 < size <= LARGEST_DIMENSION for size in sizes):
        header.at = at
        expected = f"sizes from 1 to {LARGEST_DIMENSION}"
        raise header.refuse("an impossible shape", here, expected, sizes)
    at = header.at
    type = type_of_id(int(header.number(_U32, f"{here}: type")), f"{header.path} at byte {at}")
    if sizes[0] % type.block_weights:
        header.at = at
        expected = f"a first size divisible by {type.block_weights}"
        raise header.refuse(f"a row is not in whole blocks of {type.name}", here, expected, sizes)
    at = header.at
    offset = int(header.number(_U64, f"{here}: offset"))
    return _Claim(name, type, tuple(reversed(sizes)), offset, at)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _placed(
    header: HeaderBytes, claims: Mapping[str, _Claim], data_start: int, alignment: int
) -> dict[str, StoredTensor]:
    """Tensors, which must follow each other at the alignment and end within the file.

    Raises: CheckpointError.
    """
    tensors: dict[str, StoredTensor] = {}
    position = 0
    for name, claim in claims.items():
        header.at = claim.at
        here = f"{shown(name)[1:-1]}: offset"
        if claim.offset != position:
            what = "a tensor overlaps another or follows a hole"
            if claim.offset % alignment:
                what = f"a tensor is not aligned to {alignment} bytes"
            raise header.refuse(what, here, position, claim.offset)
        size = claim.rows * claim.row_bytes
        room = max(header.file_bytes - data_start - position, 0)
        if size > room:
            raise CheckpointError(
                "a tensor reaches past the end of the file",
                where=f"{header.path}: {shown(name)[1:-1]}",
                expected=f"at most {room} bytes from byte {data_start + position}",
                found=f"{size} bytes for {claim.type.name} {list(claim.shape)}",
                do="The file is truncated: copy or download it again",
            )
        raw = StoredArray(
            header.path,
            np.dtype(np.uint8),
            (claim.rows, claim.row_bytes),
            data_start + position,
            size,
        )
        tensors[name] = StoredTensor(name, claim.type, claim.shape, raw)
        position = _padded(position + size, alignment)
    return tensors


Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class TensorToWrite:
    """One tensor of a file to be written; its rows are fetched when their turn comes."""

    name: str
    type: str
    shape: tuple[int, ...]  # input features last
    parts: Callable[[], Iterable[Bytes]]  # its bytes, some rows at a time

    def size_bytes(self) -> int:
        """Raises: UsageError for rows in no whole blocks."""
        return prod(self.shape[:-1]) * find_type(self.type).row_bytes(self.shape[-1])


def write_container(
    path: Path, metadata: Mapping[str, Value], tensors: Sequence[TensorToWrite]
) -> None:
    """Write a file, one part in memory at a time: to a temporary name, synced, then renamed.

    Raises: UsageError for a name that is too long and for rows in no whole blocks; OutputConflict
    where another run writes this file.
    """
    header = _encode_header(metadata, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, alone=True) as file:
        file.write(header)
        for tensor in tensors:
            _write_parts(file, tensor)


def _encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorToWrite]) -> bytes:
    parts = [MAGIC, _encode(WRITTEN_VERSION, _U32)]
    parts += [_encode(len(tensors), _U64), _encode(len(metadata), _U64)]
    for key, value in metadata.items():
        parts += [encode_string(key), encode_value(value)]
    offset = 0
    for tensor in tensors:
        if len(tensor.name.encode()) > LONGEST_NAME_BYTES:
            raise UsageError(
                "a name is too long for GGUF",
                expected=f"at most {LONGEST_NAME_BYTES} bytes",
                found=tensor.name,
            )
        sizes = np.array(tensor.shape[::-1], _U64)
        parts += [encode_string(tensor.name), _encode(len(sizes), _U32), sizes.tobytes()]
        parts += [_encode(find_type(tensor.type).id, _U32), _encode(offset, _U64)]
        offset = _padded(offset + tensor.size_bytes(), DEFAULT_ALIGNMENT)
    header = b"".join(parts)
    return header + _padding(len(header))


def _encode(number: int, dtype: np.dtype[Any]) -> bytes:
    return np.array(number, dtype).tobytes()


def _padding(size: int) -> bytes:
    return bytes(_padded(size, DEFAULT_ALIGNMENT) - size)


def _write_parts(file: BinaryIO, tensor: TensorToWrite) -> None:
    written = 0
    for part in _bytes_of(tensor.parts()):
        written += file.write(part)
    assert written == tensor.size_bytes(), f"{tensor.name}: {written} bytes"
    file.write(_padding(written))


def _bytes_of(parts: Iterable[Bytes]) -> Iterator[memoryview]:
    for part in parts:
        yield np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
