"""MXFP4 of gpt-oss: quant_method "mxfp4" in config.json.

In: a directory's arrays. Out: entries; experts' matrices lie behind each other, their codes as they
are: <name>_blocks u8 (experts, out_features, groups, 16), two codes a byte, the low one first, and
<name>_scales u8 (experts, out_features, groups), powers of two. Source: OCP MX specification 1.0.
Refuses shapes that do not agree, and powers that fp16 scales do not hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry, Matrix, QuantizedDirectory, StoredCodes
from crumb.errors import CheckpointError
from crumb.formats.catalog import CATALOG
from crumb.formats.grid import GroupParameters

METHOD = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"
GROUP, GROUP_BYTES = 32, 16

POWER_OF_SCALE = 128
"""What a stored power exceeds that of our scale by: 127, and 1 for the table's doubled values."""


def read_mxfp4(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of a directory. Raises: CheckpointError."""
    arrays = directory.arrays
    entries: dict[str, Entry] = {}
    for name, array in arrays.items():
        module = name.removesuffix(BLOCKS)
        if name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in arrays:
            continue
        if not name.endswith(BLOCKS):
            entries[name] = array
            continue
        scales = arrays.get(module + SCALES)
        if (
            scales is None
            or len(array.shape) != 4
            or array.shape != (*scales.shape, GROUP_BYTES)
            or {array.dtype.name, scales.dtype.name} != {"uint8"}
        ):
            raise CheckpointError(
                "blocks of 4-bit floats without a scale for each",
                where=f"{directory.path}: {name}",
                expected=f"{module}{SCALES} of bytes, and {GROUP_BYTES} bytes for each scale",
                found=f"{list(array.shape)} and {None if scales is None else list(scales.shape)}",
            )
        experts, outputs, groups = scales.shape
        rows = experts * outputs
        floats = MxFloats(
            replace(array, shape=(rows, groups, GROUP_BYTES)), replace(scales, shape=(rows, groups))
        )
        size = array.size_bytes + scales.size_bytes
        format = CATALOG["mxfp4"].only_format()
        shape = (rows, GROUP * groups)
        entries[module] = StoredCodes(format, shape, size, "MXFP4", floats.matrix)
    return entries


@dataclass(frozen=True)
class MxFloats:
    """The matrices of one module."""

    blocks: StoredArray  # (rows, groups, GROUP_BYTES)
    scales: StoredArray  # (rows, groups)

    def matrix(self, rows: slice) -> Matrix:
        """Codes and scales of some rows. Raises: CheckpointError."""
        pairs: NDArray[np.uint8] = self.blocks.read(rows)
        codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(pairs.shape[0], -1)
        powers: NDArray[np.int32] = self.scales.read(rows).astype(np.int32) - POWER_OF_SCALE
        with np.errstate(over="ignore"):
            scale = np.ldexp(np.float32(1), powers).astype(np.float16)
        if powers.size and not (powers.min() >= -24 and powers.max() <= 15):
            raise CheckpointError(
                "a scale of 4-bit floats that fp16 does not hold",
                where=f"{self.scales.path}",
                expected=f"powers of {POWER_OF_SCALE - 24} to {POWER_OF_SCALE + 15}",
                found=f"{powers.min() + POWER_OF_SCALE} to {powers.max() + POWER_OF_SCALE}",
            )
        return codes, GroupParameters(scale)
