"""The `crumb` container: a Hugging Face directory whose matrices are packed, plus manifest.json.

In: stored arrays and the files' metadata, or packed tensors to write. Out: entries, or files.
A matrix "x.weight" is stored as one array, "x.weight.tiles"; each file's metadata describes its
matrices ("x.weight": format name, out_features and in_features). Refuses other layouts and
versions, and matrices whose metadata is missing or does not fit their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import StoredPacked
from crumb.errors import CheckpointError, CrumbError
from crumb.formats.catalog import Format, parse_format
from crumb.formats.layouts.tile import LAYOUT, LAYOUT_VERSION
from crumb.formats.packed_tensor import check_stored

METHOD = "crumb"
MANIFEST = "manifest.json"

TILES = "tiles"
"""Behind the name of a matrix: the array that stores it."""

OLD_LAYOUTS = ("row-stream",)
"""Layouts that earlier versions wrote; a stored name is never used again."""


def quantization_config() -> dict[str, Any]:
    """What config.json says of the container."""
    return {"quant_method": METHOD, "layout": LAYOUT, "layout_version": LAYOUT_VERSION}


def matrix_metadata(format: Format, shape: tuple[int, int]) -> str:
    """What a file's metadata says of one matrix: format name, out_features, in_features."""
    return f"{format.name} {shape[0]} {shape[1]}"


def group_packed(
    path: Path,
    configuration: Mapping[str, Any],
    arrays: Mapping[str, StoredArray],
    formats: Mapping[str, str],
) -> dict[str, StoredArray | StoredPacked]:
    """Entries of a directory: packed matrices gathered from their arrays, the rest as they are.

    Raises: CheckpointError for another method, layout or version, and for a broken matrix.
    """
    given = configuration.get("quantization_config")
    if given is None:
        return dict(arrays)
    _check_version(given, path / "config.json")
    entries: dict[str, StoredArray | StoredPacked] = {}
    for name, array in arrays.items():
        matrix, _, suffix = name.rpartition(".")
        if not matrix or suffix != TILES:
            entries[name] = array
            continue
        where = f"{path}: {matrix}"
        if matrix in arrays:
            raise CheckpointError("a matrix is stored both packed and plain", where=where)
        entries[matrix] = packed_entry(formats.get(matrix, ""), array, where)
    return entries


def _check_version(given: Any, where: Path) -> None:
    """Refuse another method, layout or version. Raises: CheckpointError."""
    expected = quantization_config()
    found = {key: given.get(key) for key in expected} if isinstance(given, dict) else given
    if found == expected:
        return
    layout = found.get("layout") if isinstance(found, dict) else None
    what = "this quantization container cannot be read by this version"
    if layout in OLD_LAYOUTS:
        what = f"the layout {layout} of earlier versions cannot be read by this version"
    raise CheckpointError(
        what,
        where=where,
        expected=", ".join(f"{key} {value}" for key, value in expected.items()),
        found=str(found)[:200],
        do="Quantize the float checkpoint again with `crumb quantize`",
    )


def packed_entry(metadata: str, tiles: StoredArray, where: str) -> StoredPacked:
    """One matrix from what its file's metadata says of it and the array that stores it.

    Raises: CheckpointError where metadata cannot be read or the array does not follow from it.
    """
    name, *sizes = metadata.split(" ")
    try:
        format = parse_format(name)
    except CrumbError as error:
        raise CheckpointError(
            "a packed matrix without a readable format",
            where=where,
            expected="such as int3-g128-variable 4096 11008",
            found=repr(metadata[:80]),
        ) from error
    if len(sizes) != 2 or not all(_is_size(size) for size in sizes):
        raise CheckpointError(
            "a packed matrix without out_features and in_features",
            where=where,
            expected="two numbers behind the format's name",
            found=repr(metadata[:80]),
        )
    shape = int(sizes[0]), int(sizes[1])
    check_stored(format, shape, (tiles.shape, tiles.dtype), f"{where}.{TILES}")
    return StoredPacked(format, shape, tiles)


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
