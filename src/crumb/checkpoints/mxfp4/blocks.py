"""Bytes of MXFP4 in safetensors files, to codes and scales of our format and back.

In: two arrays of bytes: two codes in each, the one of the lower input in the low bits, and for
each 32 inputs an exponent e for 2^(e-127). Out: codes and parameters, or f32; the bytes again.
Our scale is half of theirs, for the levels of our table are twice a 4-bit float's.
Refuses scales that are no number. Source: OCP MX specification 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Matrix, StoredCodes, StoredFloats
from crumb.errors import CheckpointError, UsageError
from crumb.formats.catalog import CATALOG
from crumb.formats.grid import Codes, Floats, GroupParameters
from crumb.formats.powers_of_two import HALF_EXPONENTS

FORMAT = CATALOG["mxfp4"].only_format()
GROUP = FORMAT.group_size
GROUP_BYTES = GROUP // 2
SOURCE = "MXFP4"

EXPONENT_BIAS = 128
"""What a stored exponent exceeds that of our scale by: 127, and 1 for the doubled levels."""

NO_NUMBER = 255
STRIP_ROWS = 1024


@dataclass(frozen=True)
class MxFloats:
    """The arrays of one matrix."""

    where: str
    packed: StoredArray  # (rows, in_features / 2)
    scales: StoredArray  # (rows, groups)

    @property
    def shape(self) -> tuple[int, int]:
        return self.scales.shape[0], GROUP * self.scales.shape[1]

    @property
    def size_bytes(self) -> int:
        return self.packed.size_bytes + self.scales.size_bytes

    def codes_entry(self) -> StoredCodes:
        """An entry of codes; reading it refuses what the format does not hold."""
        return StoredCodes(FORMAT, self.shape, self.size_bytes, SOURCE, self.read_codes)

    def entry(self) -> StoredCodes | StoredFloats:
        """An entry of codes, or of floats where a scale is beyond fp16. Raises: CheckpointError."""
        rows = self.shape[0]
        strips = [slice(begin, begin + STRIP_ROWS) for begin in range(0, rows, STRIP_ROWS)]
        if not any(self._beyond(self.scales.read(strip), strip).any() for strip in strips):
            return self.codes_entry()
        single = np.dtype(np.float32)
        return StoredFloats(single, self.shape, self.size_bytes, SOURCE, self.read_floats)

    def read_codes(self, rows: slice) -> Matrix:
        """Codes and parameters of some rows. Raises: CheckpointError."""
        exponents = self.scales.read(rows)
        beyond = self._beyond(exponents, rows)
        if beyond.any():
            smallest, largest = (EXPONENT_BIAS + exponent for exponent in HALF_EXPONENTS)
            raise CheckpointError(
                "a scale of 4-bit floats that fp16 does not hold",
                where=self.where,
                expected=f"exponents of {smallest} to {largest}",
                found=int(exponents[beyond][0]),
            )
        powers = np.clip(exponents.astype(np.int32) - EXPONENT_BIAS, *HALF_EXPONENTS)
        scale = np.ldexp(np.float32(1), powers).astype(np.float16)
        return unpack_pairs(self.packed.read(rows)), GroupParameters(scale)

    def read_floats(self, rows: slice) -> Floats:
        """Some rows in f32, whatever their exponents. Raises: CheckpointError."""
        exponents = self.scales.read(rows)
        levels = np.array(FORMAT.row.table, np.float32)[unpack_pairs(self.packed.read(rows))]
        scale = np.ldexp(np.float32(1), exponents.astype(np.int32) - EXPONENT_BIAS)
        with np.errstate(over="ignore"):
            weights: Floats = levels * np.repeat(scale, GROUP, axis=1)
        if (exponents == NO_NUMBER).any() or not np.isfinite(weights).all():
            raise CheckpointError(
                "a scale is no number, or too large",
                where=self.where,
                expected="exponents of 0 to 252",
                found=int(exponents.max()),
                do="The file is damaged: copy or download it again",
            )
        return weights

    def _beyond(self, exponents: NDArray[np.uint8], rows: slice) -> NDArray[np.bool_]:
        """Groups whose scale fp16 does not hold; where all is 0, any number serves."""
        smallest, largest = (EXPONENT_BIAS + exponent for exponent in HALF_EXPONENTS)
        beyond: NDArray[np.bool_] = (exponents < smallest) | (exponents > largest)
        if beyond.any():
            levels = unpack_pairs(self.packed.read(rows)) & 7
            zero = ~levels.reshape(*exponents.shape, GROUP).any(axis=2)
            beyond &= ~zero | (exponents == NO_NUMBER)
        return beyond


def unpack_pairs(pairs: NDArray[np.uint8]) -> Codes:
    """Shapes: (rows, bytes) -> (rows, codes), the code in the low bits first."""
    rows, columns = pairs.shape
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(rows, 2 * columns)


def pack_pairs(codes: Codes) -> NDArray[np.uint8]:
    """Undo unpack_pairs."""
    pairs: NDArray[np.uint8] = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return pairs


def exponents_of(parameters: GroupParameters, where: str) -> NDArray[np.uint8]:
    """The bytes that stand for scales, (rows, groups). Raises: UsageError."""
    fraction, exponent = np.frexp(parameters.scale.astype(np.float32))
    odd = fraction != 0.5
    if odd.any():
        raise UsageError(
            "4-bit floats in blocks cannot hold a scale",
            where=where,
            expected="powers of two",
            found=float(parameters.scale[odd][0]),
        )
    return (exponent - 1 + EXPONENT_BIAS).astype(np.uint8)
