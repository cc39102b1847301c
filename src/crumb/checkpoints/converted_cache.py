"""Matrices of other containers in tiles, kept beside the model, so that one load converts them.

In: an opened checkpoint whose matrices are converted when read. Out: the same checkpoint with its
matrices in a file of tiles that is mapped; the file is written when there is none that fits.
A file belongs to weight files of these names, sizes and times, to their configuration and to this
layout, and each matrix to its checksum. Whatever does not fit, or is damaged, is made anew.
Refuses nothing: where the file cannot be written, this is told and the matrices stay as they were.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.reader import TILES, matrix_metadata
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray, read_header, write_file
from crumb.checkpoints.tensor_map import Entry, StoredCodes, StoredPacked, TensorMap
from crumb.errors import CrumbError, warn
from crumb.formats.layouts.tile import LAYOUT, LAYOUT_VERSION
from crumb.formats.packed_tensor import stored_shape

SUFFIX = ".crumb-tiles"
DIRECTORY_NAME = "model"
CONVERSION_VERSION = 1
"""Of what is made of other containers' codes: another number makes every file anew."""

SOURCE = "source"
CHECKSUMS = "checksums"
"""The last array: a CRC-32 of each matrix, in the order of their names in the header."""


def cache_path(checkpoint: Checkpoint) -> Path:
    """Where the tiles of a checkpoint are kept."""
    path = checkpoint.path
    return (
        path / f"{DIRECTORY_NAME}{SUFFIX}" if path.is_dir() else path.with_name(path.name + SUFFIX)
    )


def with_converted(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with what would be converted at each load in a file of tiles."""
    converted = {
        name: entry
        for name, entry in checkpoint.tensors.entries.items()
        if isinstance(entry, StoredCodes)
    }
    if not converted:
        return checkpoint
    path, source = cache_path(checkpoint), _identity(checkpoint)
    packed = _read(path, source, converted)
    if packed is None and _write(path, source, converted):
        packed = _read(path, source, converted)
    if packed is None:
        return checkpoint
    entries: dict[str, Entry] = {**checkpoint.tensors.entries, **packed}
    return replace(checkpoint, tensors=TensorMap(checkpoint.tensors.path, entries))


def _identity(checkpoint: Checkpoint) -> str:
    """What the tiles follow from, without reading the weights."""
    files = [
        (path.name, status.st_size, status.st_mtime_ns)
        for path in checkpoint.weight_files
        for status in [path.stat()]
    ]
    said = [files, checkpoint.configuration, LAYOUT, LAYOUT_VERSION, CONVERSION_VERSION]
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def _read(
    path: Path, source: str, converted: Mapping[str, StoredCodes]
) -> dict[str, StoredPacked] | None:
    """The matrices of a file; None where there is none, or it is another's or damaged."""
    try:
        arrays, metadata = read_header(path)
        if metadata.get(SOURCE) != source:
            return None
        packed = {
            name: _packed(entry, arrays[f"{name}.{TILES}"], metadata[name])
            for name, entry in converted.items()
        }
        sums = arrays[CHECKSUMS].read()
        matching = sums.shape == (len(packed),) and all(
            _checksum(entry.tiles.map()) == expected
            for entry, expected in zip(packed.values(), sums.tolist(), strict=True)
        )
    except (CrumbError, LookupError, OSError):
        return None
    return packed if matching else None


def _packed(entry: StoredCodes, tiles: StoredArray, said: str) -> StoredPacked:
    """One matrix. Raises: LookupError where the file has it otherwise."""
    array = tiles.dtype, tiles.shape
    if (said, *array) != (
        matrix_metadata(entry.format, entry.shape),
        np.dtype(np.uint8),
        stored_shape(entry.format, *entry.shape),
    ):
        raise LookupError(said)
    return StoredPacked(entry.format, entry.shape, tiles, entry.order)


def _write(path: Path, source: str, converted: Mapping[str, StoredCodes]) -> bool:
    """Convert every matrix into a new file, one in memory at a time; whether that went well."""
    sums: list[int] = []
    arrays: dict[str, ArrayToWrite] = {}
    metadata = {SOURCE: source, "format": "crumb-tiles"}
    for name, entry in converted.items():
        shape = stored_shape(entry.format, *entry.shape)
        tiles = ArrayToWrite(np.dtype(np.uint8), shape, _summed(entry, sums))
        arrays[f"{name}.{TILES}"] = tiles
        metadata[name] = matrix_metadata(entry.format, entry.shape)
    arrays[CHECKSUMS] = ArrayToWrite(
        np.dtype(np.uint32), (len(converted),), lambda: np.array(sums, np.uint32)
    )
    try:
        write_file(path, arrays, metadata, alone=True)
    except (CrumbError, OSError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        warn(f"converted matrices are not kept: {reason}", where=path)
        return False
    return True


def _summed(entry: StoredCodes, sums: list[int]) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        tiles = entry.read().tiles
        sums.append(_checksum(tiles))
        return tiles

    return read


def _checksum(tiles: NDArray[np.uint8]) -> int:
    return zlib.crc32(np.ascontiguousarray(tiles).reshape(-1).data)
