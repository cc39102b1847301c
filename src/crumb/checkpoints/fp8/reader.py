"""FP8 files of the Hugging Face kind, quant_method "fp8" and "fbgemm_fp8".

In: a directory's arrays and its quantization_config. Out: entries. A module has weight, 8-bit
floats, and weight_scale_inv for each block of weight_block_size, or weight_scale for all of it or
each row; weight = stored * scale, whatever the name says. Scales of activations are passed over.
Refuses 8-bit floats without scales, and scales without a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crumb.architectures.configuration import as_integer, refuse
from crumb.checkpoints.grouped_codes import SETTINGS, settings_of
from crumb.checkpoints.scaled_floats import EIGHT_BIT, Block, scaled_matrix
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory
from crumb.errors import CheckpointError

METHODS = ("fp8", "fbgemm_fp8")
SCALE_NAMES = ("weight_scale_inv", "weight_scale")


def read_fp8(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of an FP8 directory. Raises: CheckpointError."""
    block = _block(settings_of(directory))
    arrays = directory.arrays
    entries: dict[str, Entry] = {}
    for name, array in arrays.items():
        module, _, kind = name.rpartition(".")
        if kind in SCALE_NAMES and f"{module}.weight" in arrays:
            continue
        if array.dtype.name not in EIGHT_BIT:
            entries[name] = array
            continue
        where = f"{array.path}: {name}"
        scales = next((arrays[key] for key in _scales_of(module) if key in arrays), None)
        if kind != "weight" or scales is None or len(array.shape) != 2:
            raise CheckpointError(
                "8-bit floats that are no matrix with scales",
                where=where,
                expected=" or ".join(_scales_of(module)),
            )
        entries[name] = scaled_matrix(where, array, scales, block)
    return entries


def _scales_of(module: str) -> list[str]:
    return [f"{module}.{kind}" for kind in SCALE_NAMES]


def _block(settings: Mapping[str, Any]) -> Block | None:
    """Rows and columns that share a scale; None: all, or a row. Raises: CheckpointError."""
    key, sizes = f"{SETTINGS}.weight_block_size", settings.get("weight_block_size")
    if sizes is None:
        return None
    if not isinstance(sizes, list) or len(sizes) != 2:
        raise refuse(key, "two numbers", sizes)
    return as_integer(sizes[0], key), as_integer(sizes[1], key)
