"""MLX's own layout: `quantization` in config.json, mode "affine".

In: a directory's arrays and its settings. Out: entries. A module has weight, codes packed along
its inputs in 32-bit words, and scales and biases for each row and group: weight = scale * code +
bias. A module may have settings of its own, under its name.
Refuses other modes, and arrays that do not follow from the settings.
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
    WORD_BITS,
    Codes,
    GroupedMatrix,
    needed,
    settings_of,
    unpack_words,
    words,
)
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory
from crumb.errors import CheckpointError

METHOD = "mlx"
KEY = "quantization"
MODE = "affine"
ARRAYS = ("weight", "scales", "biases")
BITS = (2, 3, 4, 5, 6, 8)


def read_mlx(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of an MLX directory. Raises: CheckpointError."""
    settings = settings_of(directory).get(KEY)
    if not isinstance(settings, dict):
        raise refuse(KEY, "an object", settings)
    arrays = directory.arrays
    entries: dict[str, Entry] = {}
    for name, array in arrays.items():
        module, _, kind = name.rpartition(".")
        if f"{module}.scales" not in arrays or kind not in ARRAYS:
            entries[name] = array
        elif kind == "weight":
            entries[name] = _matrix(directory, module, settings).entry()
    return entries


def _matrix(
    directory: QuantizedDirectory, module: str, settings: Mapping[str, Any]
) -> GroupedMatrix:
    """One module's matrix, its arrays checked. Raises: CheckpointError."""
    own = settings.get(module)
    said = {**settings, **own} if isinstance(own, dict) else settings
    if said.get("mode", MODE) != MODE:
        raise refuse(f"{KEY}.mode", f"{MODE}, the one that is read of MLX's modes", said["mode"])
    bits = as_integer(said.get("bits"), f"{KEY}.bits", max(BITS), min(BITS))
    if bits not in BITS:
        raise refuse(f"{KEY}.bits", f"one of {', '.join(map(str, BITS))}", bits)
    width = as_integer(said.get("group_size"), f"{KEY}.group_size")
    arrays, where = directory.arrays, f"{directory.path}: {module}"
    packed = needed(arrays, f"{module}.weight", (None, None), ("uint32",))
    rows, in_features = packed.shape[0], packed.shape[1] * WORD_BITS // bits
    if in_features % width or words(in_features, bits) != packed.shape[1]:
        raise CheckpointError(
            "a row of MLX's codes is not in whole groups",
            where=where,
            expected=f"a multiple of {width} codes of {bits} bits",
            found=f"{packed.shape[1]} words",
        )
    groups = (rows, in_features // width)
    scales = needed(arrays, f"{module}.scales", groups, SCALES)
    biases = needed(arrays, f"{module}.biases", groups, SCALES)
    parts = MlxArrays(packed, bits, in_features)
    return GroupedMatrix(
        where,
        source=f"MLX of {bits} bits",
        shape=(rows, in_features),
        bits=bits,
        group_width=width,
        size_bytes=packed.size_bytes + scales.size_bytes + biases.size_bytes,
        codes=parts.codes,
        scales=scales.read,
        minimums=biases.read,
    )


@dataclass(frozen=True)
class MlxArrays:
    """The codes of one module: outputs are their rows."""

    packed: StoredArray
    bits: int
    in_features: int

    def codes(self, rows: slice) -> Codes:
        """Shapes: -> (rows, in_features)."""
        words: NDArray[np.uint32] = self.packed.read(rows)
        return unpack_words(words, self.bits, self.in_features)
