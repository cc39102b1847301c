"""PackedTensor: a quantized matrix as it is stored, in the interim row-stream layout.

In: codes and group parameters. Out: a record whose arrays a container writes as they lie.
Layout "row-stream", version 1: each row its own bit stream, parameters in separate arrays.
Refuses arrays whose shapes do not follow from the format. The tile layout will replace it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError
from crumb.formats.bit_stream import row_bytes
from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.grid import GroupParameters

LAYOUT = "row-stream"
LAYOUT_VERSION = 1


@dataclass(frozen=True)
class PackedTensor:
    """One quantized matrix."""

    format: Format
    out_features: int
    in_features: int
    codes: NDArray[np.uint8]  # (out_features, row_bytes), bit stream along in_features
    parameters: GroupParameters

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What a container stores, by the suffix each array gets behind the tensor's name."""
        stored: dict[str, NDArray[np.generic]] = {
            "codes": self.codes,
            "scale": self.parameters.scale,
        }
        if self.parameters.zero_point is not None:
            stored["zero_point"] = self.parameters.zero_point
        if self.parameters.minimum is not None:
            stored["minimum"] = self.parameters.minimum
        return stored


def stored_shapes(
    format: Format, out_features: int, in_features: int
) -> dict[str, tuple[tuple[int, int], str]]:
    """Suffix -> (shape, dtype) of every array that a tensor of this format stores."""
    groups = (out_features, format.groups(in_features))
    shapes = {
        "codes": ((out_features, row_bytes(in_features, format.bits)), "uint8"),
        "scale": (groups, "float16"),
    }
    if format.zero is ZeroKind.VARIABLE:
        shapes["zero_point"] = (groups, "uint8")
    if format.zero is ZeroKind.MINIMUM:
        shapes["minimum"] = (groups, "float16")
    return shapes


def assemble(
    format: Format,
    out_features: int,
    in_features: int,
    arrays: dict[str, NDArray[np.generic]],
    where: str,
) -> PackedTensor:
    """A PackedTensor from stored arrays, every shape and dtype checked.

    Raises: CheckpointError.
    """
    if in_features < 1:
        raise CheckpointError("a packed matrix without columns", where=where, found=in_features)
    shapes = stored_shapes(format, out_features, in_features)
    if surplus := sorted(arrays.keys() - shapes.keys()):
        raise CheckpointError(
            f"{format.name} does not store this array", where=f"{where}.{surplus[0]}"
        )
    for suffix, (shape, dtype) in shapes.items():
        array = arrays.get(suffix)
        found = None if array is None else (array.shape, array.dtype.name)
        if found != (shape, dtype):
            raise CheckpointError(
                f"a stored array does not follow from {format.name}",
                where=f"{where}.{suffix}",
                expected=f"{dtype} {shape}",
                found=found or "nothing",
            )
    parameters = GroupParameters(
        arrays["scale"].astype(np.float16, copy=False),
        zero_point=arrays["zero_point"].astype(np.uint8) if "zero_point" in arrays else None,
        minimum=arrays["minimum"].astype(np.float16) if "minimum" in arrays else None,
    )
    codes = arrays["codes"].astype(np.uint8, copy=False)
    return PackedTensor(format, out_features, in_features, codes, parameters)


def stack_rows(parts: list[PackedTensor]) -> PackedTensor:
    """One tensor from consecutive rows that were packed apart."""
    first = parts[0]
    points = [part.parameters.zero_point for part in parts]
    minima = [part.parameters.minimum for part in parts]
    parameters = GroupParameters(
        np.concatenate([part.parameters.scale for part in parts]),
        np.concatenate([point for point in points if point is not None])
        if points[0] is not None
        else None,
        np.concatenate([minimum for minimum in minima if minimum is not None])
        if minima[0] is not None
        else None,
    )
    codes = np.concatenate([part.codes for part in parts])
    return PackedTensor(first.format, len(codes), first.in_features, codes, parameters)
