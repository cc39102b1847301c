"""AWQ files of the Hugging Face kind, quant_method "awq", version "gemm": 4 bits with zero points.

In: a directory's arrays and its quantization_config. Out: entries. A module has qweight and qzeros,
both packed along its outputs, eight to a word in ORDER, and scales for each group of inputs.
Refuses other versions and bits, and files without zero points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import as_integer, refuse
from crumb.checkpoints.grouped_codes import (
    SCALES,
    SETTINGS,
    Codes,
    GroupedMatrix,
    group_shape,
    needed,
    settings_of,
    unpack_words,
    with_matrices,
)
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory

METHOD = "awq"
LEGACY_FILE = "quant_config.json"
"""Where the settings lie when config.json does not have them."""

BITS = 4
CODES_IN_WORD = 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Digit i of a word, the lowest first, is the code of output 8 * word + ORDER[i]."""

ARRAYS = ("qweight", "qzeros", "scales")
NAMES = {"bits": "w_bit", "group_size": "q_group_size"}
"""A setting's name, and what the first files called it."""

ACCEPTED: dict[str, tuple[Any, ...]] = {
    "bits": (BITS,),
    "version": ("gemm", "GEMM"),
    "zero_point": (True,),
}
"""Settings and the values that can be read, the first where there is none."""


def read_awq(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of an AWQ directory. Raises: CheckpointError."""
    settings = settings_of(directory)
    for key, accepted in ACCEPTED.items():
        value = _setting(settings, key, accepted[0])
        if isinstance(value, bool) is not isinstance(accepted[0], bool) or value not in accepted:
            raise refuse(f"{SETTINGS}.{key}", repr(accepted[0]), value)
    size = as_integer(_setting(settings, "group_size", 128), f"{SETTINGS}.group_size", lowest=-1)
    if size == 0:
        raise refuse(f"{SETTINGS}.group_size", "-1, or at least 1", size)
    return with_matrices(
        directory.arrays, ARRAYS, lambda module: _matrix(directory, module, size).entry()
    )


def _setting(settings: Mapping[str, Any], key: str, default: Any) -> Any:
    return settings.get(key, settings.get(NAMES.get(key, key), default))


def _matrix(directory: QuantizedDirectory, module: str, group_size: int) -> GroupedMatrix:
    """One module's matrix, its arrays checked. Raises: CheckpointError."""
    arrays = directory.arrays
    packed = needed(arrays, f"{module}.qweight", (None, None), ("int32",))
    in_features, columns = packed.shape
    out_features = columns * CODES_IN_WORD
    width, groups = group_shape(group_size, in_features)
    scales = needed(arrays, f"{module}.scales", (groups, out_features), SCALES)
    zeros = needed(arrays, f"{module}.qzeros", (groups, columns), ("int32",))
    parts = AwqArrays(packed, zeros, scales)
    return GroupedMatrix(
        f"{directory.path}: {module}",
        source=f"AWQ of {BITS} bits",
        shape=(out_features, in_features),
        bits=BITS,
        group_width=width,
        size_bytes=packed.size_bytes + zeros.size_bytes + scales.size_bytes,
        codes=parts.codes,
        scales=parts.scale,
        zero_points=parts.zero_points,
    )


@dataclass(frozen=True)
class AwqArrays:
    """The arrays of one module: inputs or groups are their rows."""

    qweight: StoredArray
    qzeros: StoredArray
    scales: StoredArray

    def codes(self, rows: slice) -> Codes:
        """Shapes: -> (rows, in_features)."""
        return _unpacked(self.qweight, rows)

    def zero_points(self, rows: slice) -> Codes:
        """Shapes: -> (rows, groups)."""
        return _unpacked(self.qzeros, rows)

    def scale(self, rows: slice) -> NDArray[Any]:
        """Shapes: -> (rows, groups)."""
        return self.scales.read_columns(rows).T


def _unpacked(array: StoredArray, rows: slice) -> Codes:
    """Codes of some outputs, (rows, inputs or groups); only their words are unpacked."""
    first = rows.start // CODES_IN_WORD
    packed = array.read_columns(slice(first, -(-rows.stop // CODES_IN_WORD)))
    digits = unpack_words(packed, BITS, packed.shape[1] * CODES_IN_WORD)
    sorted_digits = digits.reshape(len(packed), -1, CODES_IN_WORD)[..., np.argsort(ORDER)]
    begin = rows.start - first * CODES_IN_WORD
    outputs = sorted_digits.reshape(len(packed), -1)[:, begin : begin + rows.stop - rows.start]
    return np.ascontiguousarray(outputs.T)
