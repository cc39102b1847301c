"""The `crumb` container: a Hugging Face directory whose matrices are packed, plus manifest.json.

In: stored arrays and the files' metadata, or packed tensors to write. Out: entries, or files.
A matrix "x.weight" is stored as one array, "x.weight.tiles"; each file's metadata describes its
matrices ("x.weight": format name, out_features and in_features). One whose columns stand in another
order than its input has a second array, "x.weight.order"; one with float columns has their places
and weights in "x.weight.columns" and "x.weight.column_weights". Refuses other layouts and versions,
and matrices whose metadata is missing or does not fit their bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import (
    Entry,
    QuantizedDirectory,
    StoredColumns,
    StoredPacked,
)
from crumb.errors import CheckpointError, CrumbError
from crumb.files.model_files import CONFIGURATION
from crumb.formats.catalog import CodeRow, Format, parse_format
from crumb.formats.float_columns import HALF, check_places, columns_shape
from crumb.formats.layouts.tile import LAYOUT, LAYOUT_VERSION
from crumb.formats.packed_tensor import check_stored

METHOD = "crumb"
MANIFEST = "manifest.json"

TILES = "tiles"
"""Behind the name of a matrix: the array that stores it."""

ORDER = "order"
"""The array beside it where the matrix's columns stand in another order than its input."""

COLUMNS, COLUMN_WEIGHTS = "columns", "column_weights"
"""The arrays beside it where some of its columns are float16 beside their codes."""

BESIDE = (ORDER, COLUMNS, COLUMN_WEIGHTS)
"""What may lie beside the array of a matrix."""

LEVEL = re.compile(r"-?[0-9]{1,4}", re.ASCII)
"""A number of a table."""

OLD_LAYOUTS = ("row-stream",)
"""Layouts that earlier versions wrote; a stored name is never used again."""


def quantization_config() -> dict[str, Any]:
    """What config.json says of the container."""
    return {"quant_method": METHOD, "layout": LAYOUT, "layout_version": LAYOUT_VERSION}


def matrix_metadata(format: Format, shape: tuple[int, int]) -> str:
    """What a file's metadata says of one matrix: format name, out_features, in_features.

    Behind them the matrix's own table, if its format has learned ones: -127,-038,0041,0127.
    All numbers of a row's tables are as long, so a file's size does not wait for what is learned.
    """
    described = f"{format.name} {shape[0]} {shape[1]}"
    if not format.row.learned or format.row.table is None:
        return described
    length = len(str(-format.row.farthest_level))
    return f"{described} {','.join(f'{level:0{length}d}' for level in format.row.table)}"


def group_packed(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of a directory: packed matrices gathered from their arrays, the rest as they are.

    Raises: CheckpointError for another layout or version, and for a broken matrix.
    """
    path, arrays = directory.path, directory.arrays
    _check_version(directory.configuration["quantization_config"], path / CONFIGURATION)
    entries: dict[str, Entry] = {}
    for name, array in arrays.items():
        matrix, _, suffix = name.rpartition(".")
        if suffix in BESIDE and f"{matrix}.{TILES}" in arrays:
            continue
        if not matrix or suffix != TILES:
            entries[name] = array
            continue
        where = f"{path}: {matrix}"
        if matrix in arrays:
            raise CheckpointError("a matrix is stored both packed and plain", where=where)
        entry = packed_entry(directory.metadata.get(matrix, ""), array, where)
        order = arrays.get(f"{matrix}.{ORDER}")
        if order is not None:
            entry = replace(entry, order=read_order(order, entry.shape[1], where))
        beside = {suffix: arrays.get(f"{matrix}.{suffix}") for suffix in BESIDE}
        entries[matrix] = with_columns(entry, beside, where)
    return entries


def with_columns(
    entry: StoredPacked, arrays: Mapping[str, StoredArray | None], where: str
) -> StoredPacked:
    """A matrix with its float columns, if it has any; `arrays` by what stands behind its name.

    Raises: CheckpointError where places and weights do not follow from each other.
    """
    places, weights = arrays.get(COLUMNS), arrays.get(COLUMN_WEIGHTS)
    if places is None and weights is None:
        return entry
    if places is None or weights is None:
        raise CheckpointError(
            "float columns are places and weights",
            where=where,
            expected=f"{COLUMNS} and {COLUMN_WEIGHTS}",
            found=COLUMN_WEIGHTS if places is None else COLUMNS,
        )
    checked = check_places(places.read(), entry.shape[1], f"{where}.{COLUMNS}")
    expected = columns_shape(entry.shape, len(checked))
    if (weights.dtype, weights.shape) != (HALF, expected):
        raise CheckpointError(
            "the weights of float columns do not follow from their places",
            where=f"{where}.{COLUMN_WEIGHTS}",
            expected=f"float16 {list(expected)}",
            found=f"{weights.dtype.name} {list(weights.shape)}",
        )
    return replace(entry, columns=StoredColumns(checked, weights))


def read_order(array: StoredArray, in_features: int, where: str) -> NDArray[np.intp]:
    """The input that each column belongs to. Raises: CheckpointError where it is no permutation."""
    if (array.dtype, array.shape) == (np.dtype("<i4"), (in_features,)):
        order = array.read().astype(np.intp)
        if np.array_equal(np.sort(order), np.arange(in_features)):
            return order
    raise CheckpointError(
        "the order of a matrix's columns names each input once",
        where=f"{where}.{ORDER}",
        expected=f"int32 [{in_features}], a permutation",
        found=f"{array.dtype.name} {list(array.shape)}",
    )


def _check_version(settings: Any, where: Path) -> None:
    """Refuse another method, layout or version. Raises: CheckpointError."""
    expected = quantization_config()
    is_record = isinstance(settings, dict)
    values = {key: settings.get(key) for key in expected} if is_record else settings
    if values == expected:
        return
    layout = values.get("layout") if isinstance(values, dict) else None
    what = "this quantization container cannot be read by this version"
    if layout in OLD_LAYOUTS:
        what = f"the layout {layout} of earlier versions cannot be read by this version"
    raise CheckpointError(
        what,
        where=where,
        expected=", ".join(f"{key} {value}" for key, value in expected.items()),
        found=str(values)[:200],
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
    if format.row.learned:
        format = format.with_table(_read_table(sizes[2:], format.row, where))
        sizes = sizes[:2]
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


def _read_table(words: list[str], row: CodeRow, where: str) -> tuple[int, ...]:
    """A matrix's own table. Raises: CheckpointError."""
    numbers, farthest = words[0].split(",") if len(words) == 1 else [], row.farthest_level
    if len(numbers) == 1 << row.bits and all(LEVEL.fullmatch(each) for each in numbers):
        table = tuple(map(int, numbers))
        if table == tuple(sorted(set(table))) and -farthest <= table[0] and table[-1] <= farthest:
            return table
    raise CheckpointError(
        "a matrix with a table of its own does not say which",
        where=where,
        expected=f"{1 << row.bits} ascending numbers from -{farthest} to {farthest}",
        found=repr(" ".join(words)[:80]),
    )


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
