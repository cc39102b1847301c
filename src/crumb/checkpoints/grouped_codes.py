"""Codes on grids of groups, as GPTQ, AWQ, compressed-tensors and MLX files hold them, made entries.

In: how to read some rows of codes, scales and zero points or minimums. Out: an entry in a format
of the catalog where one decodes to the same weights, otherwise floats decoded when read: groups
that are no multiple of 32, of unequal sizes, or scales that fp16 does not hold exactly.
Refuses arrays of another shape or type, and scales that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import refuse
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import (
    Entry,
    Matrix,
    QuantizedDirectory,
    StoredCodes,
    StoredFloats,
)
from crumb.errors import CheckpointError
from crumb.formats.bit_stream import row_bytes
from crumb.formats.catalog import INTEGERS, ROW, CodeRow, Format, ZeroKind
from crumb.formats.grid import GroupParameters
from crumb.kernels.bit_stream import unpack

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]

SETTINGS = "quantization_config"
WORD_BITS = 32
SCALES = ("float16", "bfloat16", "float32")
"""Types that scales come in."""

LARGEST_SCALE = np.finfo(np.float32).max / 256
"""Times any difference of codes, this still fits f32."""

WIDTHS = (128, 64, 32)
"""Widths of groups that a format may have: a wider group is cut into the widest that divides it."""


def group_shape(group_size: int, in_features: int) -> tuple[int, int]:
    """Width and number of a row's groups; a group_size below 0 is the whole input."""
    width = in_features if group_size < 0 else min(group_size, in_features)
    return width, -(-in_features // width)


@dataclass(frozen=True)
class GroupedMatrix:
    """weight = scale * (code - zero_point) or scale * code + minimum, by row and group."""

    where: str
    source: str  # what its container calls the format
    shape: tuple[int, int]  # (out_features, in_features)
    bits: int
    group_width: int  # inputs that share a scale, at most in_features
    size_bytes: int  # in its file
    codes: Callable[[slice], Codes]  # some rows -> (rows, in_features), inputs in their order
    scales: Callable[[slice], NDArray[Any]]  # some rows -> (rows, groups)
    zero_points: Callable[[slice], Codes] | None = None  # -> (rows, groups); None: 2^(bits-1)
    minimums: Callable[[slice], NDArray[Any]] | None = None  # -> (rows, groups); no zero points
    group_of_column: NDArray[np.intp] | None = None  # (in_features,); None: equal runs

    def entry(self) -> StoredCodes | StoredFloats:
        """What the matrix is read through. Raises: CheckpointError."""
        order, format = self._order, self.format
        if order is None or format is None or not self._in_halves:
            return StoredFloats(
                np.dtype(np.float32), self.shape, self.size_bytes, self.source, self.read_floats
            )
        sorted_already = bool((order[1:] > order[:-1]).all())
        return StoredCodes(
            format,
            self.shape,
            self.size_bytes,
            self.source,
            self.read_codes,
            None if sorted_already else order,
        )

    @cached_property
    def _order(self) -> NDArray[np.intp] | None:
        """Inputs sorted by their group; None where the groups are then no equal runs."""
        runs = np.arange(self.shape[1])
        if self.group_of_column is None:
            return runs
        order = np.argsort(self.group_of_column, kind="stable")
        equal = bool((self.group_of_column[order] == runs // self.group_width).all())
        return order if equal else None

    @cached_property
    def format(self) -> Format | None:
        """The format that holds the same codes; None where no group size fits."""
        whole = self.group_width >= self.shape[1]
        sizes = (ROW,) if whole else [size for size in WIDTHS if self.group_width % size == 0]
        row = row_of(self.bits)
        return Format(row, sizes[0], self._zero) if sizes else None

    @cached_property
    def _zero(self) -> ZeroKind:
        if self.minimums is not None:
            return ZeroKind.MINIMUM
        if self.zero_points is None:
            return ZeroKind.FIXED
        points = self.zero_points(slice(0, self.shape[0]))
        middle = bool((points == 1 << (self.bits - 1)).all())
        return ZeroKind.FIXED if middle else ZeroKind.VARIABLE

    @cached_property
    def _in_halves(self) -> bool:
        """Whether every scale and minimum is one of fp16."""
        whole = slice(0, self.shape[0])
        numbers = [read(whole) for read in (self.scales, self.minimums) if read is not None]
        return all(each.dtype == np.float16 or _same_as_half(each) for each in numbers)

    def read_codes(self, rows: slice) -> Matrix:
        """Some rows, inputs sorted by group. Raises: CheckpointError."""
        format = self.format
        assert format is not None, "an entry of codes has a format"
        codes = self.codes(rows)
        if self.group_of_column is not None:
            assert self._order is not None, "an entry of codes has equal groups"
            codes = codes[:, self._order]
        if format.zero is ZeroKind.FIXED:  # a row of more bits has its zero higher
            codes = codes + np.uint8(format.fixed_zero_point - (1 << (self.bits - 1)))
        scale = self._spread(self._checked(self.scales(rows)).astype(np.float16), format)
        if format.zero is ZeroKind.FIXED:
            return codes, GroupParameters(scale)
        if self.minimums is not None:
            minimum = self._checked(self.minimums(rows)).astype(np.float16)
            return codes, GroupParameters(scale, minimum=self._spread(minimum, format))
        assert self.zero_points is not None, "a variable zero is stored"
        return codes, GroupParameters(
            scale, zero_point=self._spread(self.zero_points(rows), format)
        )

    def _spread(self, groups: NDArray[Any], format: Format) -> NDArray[Any]:
        """Each group's value for the narrower groups that it is cut into."""
        in_features = self.shape[1]
        times = self.group_width // format.group_width(in_features)
        return np.repeat(groups, times, axis=1)[:, : format.groups(in_features)]

    def read_floats(self, rows: slice) -> Floats:
        """Some rows in f32, inputs in their order. Raises: CheckpointError."""
        group = self.group_of_column
        if group is None:
            group = np.arange(self.shape[1]) // self.group_width
        weights = self.codes(rows).astype(np.float32)
        if self.zero_points is not None:
            weights -= self.zero_points(rows).astype(np.float32)[:, group]
        elif self.minimums is None:
            weights -= np.float32(1 << (self.bits - 1))
        weights *= self._checked(self.scales(rows)).astype(np.float32)[:, group]
        if self.minimums is not None:
            weights += self._checked(self.minimums(rows)).astype(np.float32)[:, group]
        return weights

    def _checked(self, scales: NDArray[Any]) -> NDArray[Any]:
        """Scales or minimums. Raises: CheckpointError."""
        if not (np.abs(scales.astype(np.float32)) <= LARGEST_SCALE).all():  # NaN is refused too
            raise CheckpointError(
                "a scale is no number, or too large",
                where=self.where,
                expected=f"at most {LARGEST_SCALE:.3g}",
                do="The file is damaged: copy or download it again",
            )
        return scales


def _same_as_half(scales: NDArray[Any]) -> bool:
    single = scales.astype(np.float32)
    with np.errstate(over="ignore"):
        return bool((single.astype(np.float16).astype(np.float32) == single).all())


def row_of(bits: int) -> CodeRow:
    """The narrowest row of whole numbers that holds codes of this width."""
    return min((row for row in INTEGERS.values() if row.bits >= bits), key=lambda row: row.bits)


def group_indices(
    array: StoredArray, groups: int, width: int, where: str
) -> NDArray[np.intp] | None:
    """The group of each input, from a stored g_idx; None for equal runs.

    Some writers without an order leave it all zeros: one group of everything is not meant then.
    Raises: CheckpointError.
    """
    indices = array.read().astype(np.intp)
    if not indices.any():
        return None
    lowest, highest = int(indices.min()), int(indices.max())
    if lowest < 0 or highest >= groups:
        raise CheckpointError(
            "an input belongs to a group that is not there",
            where=f"{where}.g_idx",
            expected=f"0 to {groups - 1}",
            found=lowest if lowest < 0 else highest,
        )
    in_order = np.arange(len(indices)) // width
    return None if np.array_equal(indices, in_order) else indices


def words(count: int, bits: int) -> int:
    """32-bit words that so many codes fill, the last perhaps in part."""
    return -(-count * bits // WORD_BITS)


def unpack_words(packed: NDArray[Any], bits: int, count: int) -> Codes:
    """Codes of each row of words. Shapes: (rows, words) -> (rows, count)."""
    stream = np.ascontiguousarray(packed).view(np.uint8)
    return unpack(stream[:, : row_bytes(count, bits)], bits, count)


def needed(
    arrays: Mapping[str, StoredArray],
    name: str,
    shape: Sequence[int | None],
    dtypes: Sequence[str],
) -> StoredArray:
    """An array of this shape, None meaning any size from 1, and one of these types.

    Raises: CheckpointError where it is missing or another.
    """
    array = arrays.get(name)
    if array is None:
        file = next((other.path for other in arrays.values()), None)
        raise CheckpointError("a quantized layer lacks an array", where=file, expected=name)
    sizes = [
        length == size or (size is None and length > 0)
        for length, size in zip(array.shape, shape, strict=False)
    ]
    if len(array.shape) != len(shape) or not all(sizes) or array.dtype.name not in dtypes:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise CheckpointError(
            "an array of a quantized layer does not have the shape or type it needs",
            where=f"{array.path}: {name}",
            expected=f"{' or '.join(dtypes)} ({expected})",
            found=f"{array.dtype.name} {array.shape}",
        )
    return array


def settings_of(directory: QuantizedDirectory) -> Mapping[str, Any]:
    """The quantization settings of a directory. Raises: CheckpointError."""
    settings = directory.configuration.get(SETTINGS)
    if not isinstance(settings, dict):
        raise refuse(SETTINGS, "an object", settings)
    return settings


def with_matrices(
    arrays: Mapping[str, StoredArray],
    suffixes: Sequence[str],
    matrix: Callable[[str], Entry],
) -> dict[str, Entry]:
    """Entries of a directory: "x.weight" for each module x that has suffixes[0], the rest plain.

    Raises: CheckpointError for a module that is stored twice, and what `matrix` refuses.
    """
    entries: dict[str, Entry] = {}
    for name, array in arrays.items():
        module, _, suffix = name.rpartition(".")
        if suffix not in suffixes or f"{module}.{suffixes[0]}" not in arrays:
            entries[name] = array
        elif suffix == suffixes[0]:
            if f"{module}.weight" in arrays:
                raise CheckpointError(
                    "a matrix is stored both packed and plain", where=f"{array.path}: {module}"
                )
            entries[f"{module}.weight"] = matrix(module)
    return entries
