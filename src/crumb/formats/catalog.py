"""The catalog of formats: what a quantized number is, one row per code width.

In: a name such as "int3-g128-variable". Out: a Format with its formula and exact bits per weight.
Refuses widths, group sizes and zero kinds that no row lists. Bytes are the business of layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from crumb.errors import UsageError

ROW = 0
"""Group size that means the whole row of in_features."""


class ZeroKind(StrEnum):
    """Where a group's real zero lies on its codes."""

    FIXED = "fixed"
    VARIABLE = "variable"
    MINIMUM = "minimum"


class ScaleKind(StrEnum):
    """How a group's scale is stored. Super-block scales join as a further member and row."""

    FP16 = "fp16"


ZERO_BITS = {ZeroKind.FIXED: 0, ZeroKind.VARIABLE: 8, ZeroKind.MINIMUM: 16}
"""Bits that each group stores beside its scale."""

FORMULAS = {
    ZeroKind.FIXED: "w = scale * (code - 2^(bits-1))",
    ZeroKind.VARIABLE: "w = scale * (code - zero_point)",
    ZeroKind.MINIMUM: "w = scale * code + minimum",
}

SCALE_BITS = {ScaleKind.FP16: 16}
GROUP_SIZES = (32, 64, 128, ROW)


@dataclass(frozen=True)
class CodeRow:
    """One row of the catalog: the codes, and what may accompany them."""

    name: str
    bits: int
    scale: ScaleKind = ScaleKind.FP16
    zeros: tuple[ZeroKind, ...] = tuple(ZeroKind)
    group_sizes: tuple[int, ...] = GROUP_SIZES
    table: tuple[int, ...] | None = None  # (2^bits,) int8 values; fixed zero only

    @property
    def largest_code(self) -> int:
        return (1 << self.bits) - 1


CATALOG: dict[str, CodeRow] = {
    row.name: row
    for row in (
        CodeRow("int2", 2),
        CodeRow("int3", 3),
        CodeRow("int4", 4),
        CodeRow("int5", 5),
        CodeRow("int6", 6),
        CodeRow("int8", 8),
    )
}


@dataclass(frozen=True)
class Format:
    """A catalog row with its group size and zero kind: all the mathematics of one tensor."""

    row: CodeRow
    group_size: int  # weights that share a scale; ROW for all of in_features
    zero: ZeroKind

    @property
    def name(self) -> str:
        return f"{self.row.name}-{group_name(self.group_size)}-{self.zero.value}"

    @property
    def bits(self) -> int:
        return self.row.bits

    @property
    def fixed_zero_point(self) -> int:
        """What decodes to 0 when the zero is fixed: a code, or with a table the value 0."""
        return 0 if self.row.table else 1 << (self.bits - 1)

    def group_width(self, in_features: int) -> int:
        """Weights in a full group of a row this wide."""
        return in_features if self.group_size == ROW else self.group_size

    def groups(self, in_features: int) -> int:
        """Groups of a row; a ragged last group is simply smaller."""
        return -(-in_features // self.group_width(in_features))

    def row_bits(self, in_features: int) -> int:
        """Exact bits of one row of in_features weights, padded to a byte; a layout may pad more."""
        code_bits = 8 * (-(-in_features * self.bits // 8))
        group_bits = SCALE_BITS[self.row.scale] + ZERO_BITS[self.zero]
        return code_bits + self.groups(in_features) * group_bits

    def bits_per_weight(self, in_features: int) -> float:
        """Exact bits per weight of a row this wide."""
        return self.row_bits(in_features) / in_features

    def check_width(self, in_features: int, tensor: str) -> None:
        """Refuse a group that is wider than the tensor's input.

        Raises: UsageError.
        """
        if self.group_size > in_features:
            raise UsageError(
                "the group is larger than the layer's input",
                where=tensor,
                expected=f"a group size of at most {in_features}",
                found=self.group_size,
                do="Choose a smaller --group-size, or --group-size row",
            )


def group_name(group_size: int) -> str:
    """How a group size is spelled inside a format's name."""
    return "row" if group_size == ROW else f"g{group_size}"


def find_row(bits: int) -> CodeRow:
    """The catalog's integer row of this width.

    Raises: UsageError, naming the widths there are.
    """
    for row in CATALOG.values():
        if row.bits == bits and row.table is None:
            return row
    widths = ", ".join(str(row.bits) for row in CATALOG.values() if row.table is None)
    raise UsageError(
        "no format has this many bits",
        expected=f"one of {widths}",
        found=bits,
        do="See `crumb formats`",
    )


def make_format(bits: int, group_size: int, zero: ZeroKind | str) -> Format:
    """A checked Format.

    Raises: UsageError for a width, group size or zero kind that the catalog does not list.
    """
    row = find_row(bits)
    if group_size not in row.group_sizes:
        sizes = ", ".join("row" if size == ROW else str(size) for size in row.group_sizes)
        raise UsageError(
            "no format has this group size", expected=f"one of {sizes}", found=group_size
        )
    if zero not in row.zeros:
        kinds = ", ".join(kind.value for kind in row.zeros)
        raise UsageError("no format has this zero kind", expected=f"one of {kinds}", found=zero)
    return Format(row, group_size, ZeroKind(zero))


def parse_format(name: str) -> Format:
    """The Format that `Format.name` spells.

    Raises: UsageError.
    """
    parts = name.split("-")
    row = CATALOG.get(parts[0])
    group = parts[1] if len(parts) == 3 else ""
    is_group = group == "row" or (group[:1] == "g" and group[1:].isdecimal() and len(group) < 8)
    if row is not None and is_group:
        format = make_format(row.bits, ROW if group == "row" else int(group[1:]), parts[2])
        if format.name == name:  # one format has one name: neither g0 nor g032
            return format
    raise UsageError(
        "not a format's name", expected="such as int3-g128-variable", found=repr(name[:80])
    )
