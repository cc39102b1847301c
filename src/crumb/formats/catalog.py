"""The catalog of formats: what a quantized number is, one row per kind of code.

In: a name such as "int3-g128-variable". Out: a Format with its formula and exact bits per weight.
The rows q2_k to mxfp4 are GGUF's types of these names (source: the ggml block descriptions).
Refuses widths, group sizes and zero kinds that no row lists. Bytes are the business of layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """How a group's scale is stored."""

    FP16 = "fp16"  # one fp16 for each group
    POWER = "power"  # the same, and a power of two
    SUPER = "super"  # a whole number for each group, times one fp16 for each super-block


@dataclass(frozen=True)
class SuperBlock:
    """How the groups of a super-block share an fp16 scale, and an fp16 minimum if they have one.

    A group's scale is scale * sub_scale, its minimum minus (minimum * sub_minimum).
    """

    width: int  # weights of a super-block
    lowest: int  # sub_scale
    highest: int  # sub_scale, and sub_minimum, whose lowest is 0
    sub_bits: int  # bits of each sub_scale and each sub_minimum
    ragged: bool = False  # the last of a row may be smaller, and sub-scales are stored packed


ZERO_BITS = {ZeroKind.FIXED: 0, ZeroKind.VARIABLE: 8, ZeroKind.MINIMUM: 16}
"""Bits that each group stores beside its scale."""

FORMULAS = {
    ZeroKind.FIXED: "w = scale * (code - 2^(bits-1))",
    ZeroKind.VARIABLE: "w = scale * (code - zero_point)",
    ZeroKind.MINIMUM: "w = scale * code + minimum",
}

SUPER_FORMULAS = {
    ZeroKind.FIXED: "w = scale * sub_scale * (code - 2^(bits-1))",
    ZeroKind.MINIMUM: "w = scale * sub_scale * code - minimum * sub_minimum",
}

FP16_BITS = 16
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
    learned: bool = False  # each matrix has a table of its own, of which this is the beginning
    super_block: SuperBlock | None = None  # ScaleKind.SUPER only

    @property
    def largest_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    def kind(self) -> str:
        """What its codes stand for, a word of CODES; `int` of types that have none."""
        return next((kind for kind in CODES if self.name in (kind, f"{kind}{self.bits}")), "int")

    def formula(self, zero: ZeroKind) -> str:
        """What a code decodes to."""
        formula = (FORMULAS if self.super_block is None else SUPER_FORMULAS)[zero]
        return (
            formula if self.table is None else formula.replace("(code - 2^(bits-1))", "table[code]")
        )

    @property
    def farthest_level(self) -> int:
        """Of a table: no level, learned or not, is farther from 0."""
        return max(map(abs, CATALOG[self.name].table or (0,)))

    def only_format(self) -> Format:
        """The format of a row that has one group size and one zero kind."""
        (group_size,), (zero,) = self.group_sizes, self.zeros
        return Format(self, group_size, zero)


_FIXED, _MINIMUM = (ZeroKind.FIXED,), (ZeroKind.MINIMUM,)

_NIBBLES = SuperBlock(256, 0, 15, 4)
_SIX_BITS = SuperBlock(256, 0, 63, 6)
_SIGNED_SIX_BITS = SuperBlock(256, -32, 31, 6)
_SIGNED_BYTES = SuperBlock(256, -128, 127, 8)
_SHORT_DIGITS = SuperBlock(256, -8, 7, 4, ragged=True)
_SHORT_SIX_BITS = SuperBlock(256, -32, 31, 6, ragged=True)

_NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_NORMAL_4 = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
"""127 times NF4's values: quantiles of a normal distribution, with a 0 (arXiv 2305.14314)."""

_LEANING_4 = (-127, -105, -89, -75, -61, -46, -32, -18, -4, 11, 25, 39, 53, 68, 86, 111)
_LEANING_3, _LEANING_2 = (-127, -80, -46, -19, 5, 30, 58, 97), (-127, -43, 17, 86)
"""Where tables begin to be learned: longer on one side, for a scale's sign turns them."""

_SMALL_3, _SMALL_2 = (-15, -9, -5, -2, 1, 4, 7, 11), (-15, -5, 2, 10)
"""The same, so small that a level times a sub-scale of -8 to 7 fits a signed byte."""

_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of a 4-bit float, so the scale is half of MXFP4's."""


def _super(
    name: str, bits: int, group_size: int, zeros: tuple[ZeroKind, ...], block: SuperBlock
) -> CodeRow:
    return CodeRow(name, bits, ScaleKind.SUPER, zeros, (group_size,), super_block=block)


def _learned_super(name: str, bits: int, block: SuperBlock, table: tuple[int, ...]) -> CodeRow:
    return replace(_super(name, bits, 32, _FIXED, block), table=table, learned=True)


CATALOG: dict[str, CodeRow] = {
    row.name: row
    for row in (
        CodeRow("int2", 2),
        CodeRow("int3", 3),
        CodeRow("int4", 4),
        CodeRow("int5", 5),
        CodeRow("int6", 6),
        CodeRow("int8", 8),
        _super("q2_k", 2, 16, _MINIMUM, _NIBBLES),
        _super("q3_k", 3, 16, _FIXED, _SIGNED_SIX_BITS),
        _super("q4_k", 4, 32, _MINIMUM, _SIX_BITS),
        _super("q5_k", 5, 32, _MINIMUM, _SIX_BITS),
        _super("q6_k", 6, 16, _FIXED, _SIGNED_BYTES),
        CodeRow("iq4_nl", 4, zeros=_FIXED, group_sizes=(32,), table=_NON_LINEAR),
        replace(_super("iq4_xs", 4, 32, _FIXED, _SIGNED_SIX_BITS), table=_NON_LINEAR),
        CodeRow("nf4", 4, zeros=_FIXED, table=_NORMAL_4),
        CodeRow("fp4", 4, zeros=_FIXED, table=_E2M1),
        CodeRow("lut2", 2, zeros=_FIXED, table=_LEANING_2, learned=True),
        CodeRow("lut3", 3, zeros=_FIXED, table=_LEANING_3, learned=True),
        CodeRow("lut4", 4, zeros=_FIXED, table=_LEANING_4, learned=True),
        _learned_super("super2", 2, _SHORT_DIGITS, _SMALL_2),
        _learned_super("super3", 3, _SHORT_DIGITS, _SMALL_3),
        _learned_super("super4", 4, _SHORT_SIX_BITS, _LEANING_4),
        CodeRow("mxfp4", 4, ScaleKind.POWER, _FIXED, (32,), _E2M1),
    )
}

INTEGERS: dict[str, CodeRow] = {
    name: row for name, row in CATALOG.items() if row.table is None and row.super_block is None
}
"""The rows whose codes are whole numbers and whose groups each have an fp16 scale."""

CODES = ("int", "nf4", "fp4", "mxfp4", "lut", "super")
"""What codes of so many bits may stand for; all but those ending in 4 have a row for each width."""


@dataclass(frozen=True)
class Format:
    """A catalog row with its group size and zero kind: all the mathematics of one tensor."""

    row: CodeRow
    group_size: int  # weights that share a scale; ROW for all of in_features
    zero: ZeroKind

    def with_table(self, table: tuple[int, ...]) -> Format:
        """The same with another table, which is the matrix's own."""
        assert self.row.learned, f"{self.row.name} has one table"
        return replace(self, row=replace(self.row, table=table))

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

    def block_width(self, in_features: int) -> int:
        """Weights whose fp16 scale is one number: a full group's, or a super-block's."""
        block = self.row.super_block
        return self.group_width(in_features) if block is None else block.width

    def blocks(self, in_features: int) -> int:
        """fp16 scales of a row."""
        return -(-in_features // self.block_width(in_features))

    def whole_groups(self, in_features: int) -> int:
        """Groups of a row whose last super-block is whole, as GroupParameters have them."""
        if self.row.super_block is None:
            return self.groups(in_features)
        return self.blocks(in_features) * (self.row.super_block.width // self.group_size)

    def row_bits(self, in_features: int) -> int:
        """Exact bits of one row of in_features weights, padded to a byte; a layout may pad more."""
        code_bits = 8 * (-(-in_features * self.bits // 8))
        if self.row.super_block is None:
            group_bits = FP16_BITS + ZERO_BITS[self.zero]
            return code_bits + self.groups(in_features) * group_bits
        values = 2 if self.zero is ZeroKind.MINIMUM else 1
        sub_bits = self.groups(in_features) * self.row.super_block.sub_bits
        return code_bits + values * (sub_bits + self.blocks(in_features) * FP16_BITS)

    def bits_per_weight(self, in_features: int) -> float:
        """Exact bits per weight of a row this wide."""
        return self.row_bits(in_features) / in_features

    def check_width(self, in_features: int, tensor: str) -> None:
        """Refuse a group that is wider than the tensor's input, and part of a super-block.

        Raises: UsageError.
        """
        block = self.row.super_block
        if block is not None and not block.ragged and in_features % block.width:
            raise UsageError(
                f"{self.row.name} needs inputs in whole super-blocks",
                where=tensor,
                expected=f"in_features divisible by {block.width}",
                found=in_features,
                do="Choose a format with groups of 32 for this tensor",
            )
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


def find_row(bits: int, codes: str = "int") -> CodeRow:
    """The catalog's row of this width, whose codes are of this kind.

    Raises: UsageError, naming the kinds or the widths there are.
    """
    if codes not in CODES:
        raise UsageError(
            "no such kind of codes", expected=f"one of {', '.join(CODES)}", found=repr(codes)[:40]
        )
    rows = [row for name, row in CATALOG.items() if name in (codes, f"{codes}{row.bits}")]
    for row in rows:
        if row.bits == bits:
            return row
    raise UsageError(
        "no format has this many bits" + ("" if codes == "int" else f" of {codes}"),
        expected=f"one of {', '.join(str(row.bits) for row in rows)}",
        found=bits,
        do="See `crumb formats`",
    )


def make_format(bits: int, group_size: int, zero: ZeroKind | str, codes: str = "int") -> Format:
    """A checked Format of whole numbers, or of a table.

    Raises: UsageError for a width, group size, zero kind or kind of codes that the catalog does
    not list.
    """
    return format_of_row(find_row(bits, codes), group_size, zero)


def format_of_row(row: CodeRow, group_size: int, zero: ZeroKind | str) -> Format:
    """A checked Format of any row.

    Raises: UsageError for a group size or zero kind that the row does not list.
    """
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
        format = format_of_row(row, ROW if group == "row" else int(group[1:]), parts[2])
        if format.name == name:  # one format has one name: neither g0 nor g032
            return format
    raise UsageError(
        "not a format's name", expected="such as int3-g128-variable", found=repr(name[:80])
    )
