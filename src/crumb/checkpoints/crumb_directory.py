"""The `crumb` container: a Hugging Face directory whose matrices are packed, plus manifest.json.

In: stored arrays and the files' metadata, or packed tensors to write. Out: entries, or files.
A matrix "x.weight" is stored as "x.weight.codes", ".scale" and, by zero kind, ".zero_point" or
".minimum"; each file's metadata names the format of its matrices ("x.weight": format name and
width). Refuses other layouts and versions, and matrices whose metadata is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import StoredPacked
from crumb.errors import CheckpointError, CrumbError
from crumb.formats.catalog import parse_format
from crumb.formats.packed_tensor import LAYOUT, LAYOUT_VERSION, PackedTensor

METHOD = "crumb"
MANIFEST = "manifest.json"


def quantization_config() -> dict[str, Any]:
    """What config.json says of the container."""
    return {"quant_method": METHOD, "layout": LAYOUT, "layout_version": LAYOUT_VERSION}


def format_metadata(tensor: PackedTensor) -> str:
    """What a file's metadata says of one matrix: format name and in_features."""
    return f"{tensor.format.name} {tensor.in_features}"


def group_packed(
    path: Path,
    configuration: Mapping[str, Any],
    arrays: Mapping[str, StoredArray],
    formats: Mapping[str, str],
) -> dict[str, StoredArray | StoredPacked]:
    """Entries of a directory: packed matrices gathered from their arrays, the rest as they are.

    Raises: CheckpointError for another method, layout or version.
    """
    given = configuration.get("quantization_config")
    if given is None:
        return dict(arrays)
    expected = quantization_config()
    found = {key: given.get(key) for key in expected} if isinstance(given, dict) else given
    if found != expected:
        raise CheckpointError(
            "this quantization container cannot be read by this version",
            where=path / "config.json",
            expected=", ".join(f"{key} {value}" for key, value in expected.items()),
            found=str(found)[:200],
            do="Quantize the float checkpoint again with `crumb quantize`",
        )
    entries: dict[str, StoredArray | StoredPacked] = {}
    for name, array in arrays.items():
        matrix, _, suffix = name.rpartition(".")
        if matrix and suffix == "codes":
            entries[matrix] = _packed(path, matrix, arrays, formats)
        elif f"{matrix}.codes" not in arrays:
            entries[name] = array
    return entries


def _packed(
    path: Path, matrix: str, arrays: Mapping[str, StoredArray], formats: Mapping[str, str]
) -> StoredPacked:
    parts = {
        suffix: arrays[f"{matrix}.{suffix}"]
        for suffix in ("codes", "scale", "zero_point", "minimum")
        if f"{matrix}.{suffix}" in arrays
    }
    name, _, width = formats.get(matrix, "").partition(" ")
    try:
        format = parse_format(name)
    except CrumbError as error:
        raise CheckpointError(
            "a packed matrix without a readable format",
            where=f"{path}: {matrix}",
            found=repr(name[:80]),
        ) from error
    if not width.isdecimal() or len(width) > 9 or len(parts["codes"].shape) != 2:
        raise CheckpointError("a packed matrix without a width", where=f"{path}: {matrix}")
    return StoredPacked(format, (parts["codes"].shape[0], int(width)), parts)
