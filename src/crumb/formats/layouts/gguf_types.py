"""GGUF's tensor types: sizes, and the place of every bit. One row of GGUF_TYPES is one type.

In: a name, or a file's type number. Out: its Format or float dtype, and where its codes, scales and
minima lie. Bits lie in runs of equal digits, so one reader and one writer (gguf_blocks) serve all.
Little-endian. Refuses types without a row, by name. Source: the ggml block descriptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError, UsageError
from crumb.formats.catalog import CATALOG, Format, parse_format

QUANTIZATION_VERSION = 2
"""What general.quantization_version says of a file with these blocks."""


@dataclass(frozen=True)
class Digits:
    """Where some bits of a block's values lie: digits of `width` bits in a run of bytes.

    A chunk is `stride` bytes and holds stride * per_byte values: its first `stride` values are the
    lowest digits of its bytes, the next `stride` values the digits above those, and so on.
    """

    first_byte: int
    width: int  # bits
    count: int  # values
    stride: int
    per_byte: int
    low_in_byte: int = 0  # lowest bit of the lowest digit
    low_in_value: int = 0  # lowest bit within the value
    first_value: int = 0

    @property
    def end_byte(self) -> int:
        return self.first_byte + self.count // self.per_byte

    @property
    def shifts(self) -> NDArray[np.uint8]:
        """The lowest bit of each digit of a byte, (per_byte, 1)."""
        return (self.low_in_byte + self.width * np.arange(self.per_byte, dtype=np.uint8))[:, None]


def _full(first_byte: int, width: int, count: int, stride: int = 1, low: int = 0) -> Digits:
    """Digits that fill their bytes."""
    return Digits(first_byte, width, count, stride, 8 // width, low_in_value=low)


def _part(
    first_byte: int, width: int, values: range, low_in_byte: int = 0, low_in_value: int = 0
) -> Digits:
    """One digit in each byte; other digits of the byte belong to another run."""
    count = len(values)
    return Digits(first_byte, width, count, count, 1, low_in_byte, low_in_value, values.start)


class ScaleCode(StrEnum):
    """How a block stores its scale."""

    HALF = "fp16"
    NEGATED = "fp16 of minus our scale"
    EXPONENT = "a byte e for 2^(e-128)"


EXPONENT_BIAS = 128


@dataclass(frozen=True)
class GgufType:
    """One tensor type. Byte places count from the block's first byte."""

    name: str
    id: int
    block_weights: int
    block_bytes: int
    file_type: int  # general.file_type of a file whose matrices are of this type
    format: Format | None = None  # None for floats
    codes: tuple[Digits, ...] = ()
    code_flip: int = 0  # our code is the stored one with these bits inverted
    scale_byte: int = 0
    scale_code: ScaleCode = ScaleCode.HALF
    minimum_byte: int | None = None  # fp16
    sub_scale: tuple[Digits, ...] = ()
    sub_scale_bias: int = 0  # stored = sub_scale + this
    sub_minimum: tuple[Digits, ...] = ()
    float_dtype: np.dtype[Any] | None = None  # floats only

    def __post_init__(self) -> None:
        if self.format is not None:
            scale_bits = 8 if self.scale_code is ScaleCode.EXPONENT else 16
            runs = (*self.codes, *self.sub_scale, *self.sub_minimum)
            minimum_bits = 0 if self.minimum_byte is None else 16
            bits = scale_bits + minimum_bits + sum(run.width * run.count for run in runs)
            assert bits == 8 * self.block_bytes, f"{self.name}: the fields fill the block"

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_weights

    def blocks(self, in_features: int) -> int:
        """Blocks of a row. Raises: UsageError."""
        if in_features % self.block_weights:
            raise UsageError(
                f"{self.name} needs inputs in whole blocks",
                expected=f"in_features divisible by {self.block_weights}",
                found=in_features,
                do="Choose a type with smaller blocks",
            )
        return in_features // self.block_weights

    def row_bytes(self, in_features: int) -> int:
        """Size of a row. Raises: UsageError."""
        return self.blocks(in_features) * self.block_bytes


_LOW = range(4)
_HIGH = range(4, 8)

_SCALES_OF_8 = (_part(4, 6, _LOW), _part(12, 4, _HIGH), _part(4, 2, _HIGH, 6, 4))
"""Q4_K and Q5_K, bytes 4..15 for sub-blocks 0..7; s is sub_scale, m is sub_minimum.

            bit 7 6   5 4 3 2 1 0          bit 7 6   5 4 3 2 1 0            bit 7 6 5 4   3 2 1 0
    byte 4+j  s[4+j]  s[j]         byte 8+j  m[4+j]  m[j]          byte 12+j  m[4+j]    s[4+j]
              bits 54 bits 5..0              bits 54 bits 5..0                bits 3..0 bits 3..0
"""
_MINIMA_OF_8 = (_part(8, 6, _LOW), _part(12, 4, _HIGH, 4), _part(8, 2, _HIGH, 6, 4))


def _only(row_name: str) -> Format:
    return CATALOG[row_name].only_format()


_ROWS = (
    # Floats: one weight a block, little-endian.
    GgufType("F32", 0, 1, 4, 0, float_dtype=np.dtype("<f4")),
    GgufType("F16", 1, 1, 2, 1, float_dtype=np.dtype("<f2")),
    GgufType("BF16", 30, 1, 2, 32, float_dtype=np.dtype(ml_dtypes.bfloat16)),
    # Q4_0, 4.5 bits per weight. w = d * (q - 8)
    #   byte 0      2 + j, j = 0..15
    #        | d    | q[16+j] | q[j]   |
    #          fp16   bits 7..4 3..0
    GgufType("Q4_0", 2, 32, 18, 2, parse_format("int4-g32-fixed"), (_full(2, 4, 32, 16),)),
    # Q4_1, 5 bits per weight. w = d * q + m
    #   byte 0      2      4 + j
    #        | d    | m    | q[16+j] | q[j] |
    GgufType(
        "Q4_1", 3, 32, 20, 3, parse_format("int4-g32-minimum"), (_full(4, 4, 32, 16),),
        minimum_byte=2,
    ),
    # Q5_0, 5.5 bits per weight. w = d * (q - 16)
    #   byte 0      2 + i, i = 0..3                   6 + j, j = 0..15
    #        | d    | bit 4 of q[8i+7] ... q[8i]      | q[16+j] low 4 | q[j] low 4 |
    GgufType(
        "Q5_0", 6, 32, 22, 8, parse_format("int5-g32-fixed"),
        (_full(6, 4, 32, 16), _full(2, 1, 32, low=4)),
    ),
    # Q5_1, 6 bits per weight. w = d * q + m
    #   byte 0      2      4 + i                      8 + j
    #        | d    | m    | bit 4 of q[8i+7] ... q[8i] | q[16+j] low 4 | q[j] low 4 |
    GgufType(
        "Q5_1", 7, 32, 24, 9, parse_format("int5-g32-minimum"),
        (_full(8, 4, 32, 16), _full(4, 1, 32, low=4)), minimum_byte=2,
    ),
    # Q8_0, 8.5 bits per weight. w = d * q with q an int8, which is our code with bit 7 inverted
    #   byte 0      2 + e
    #        | d    | q[e] |
    GgufType(
        "Q8_0", 8, 32, 34, 7, parse_format("int8-g32-fixed"), (_full(2, 8, 32),), code_flip=128
    ),
    # Q2_0, 2.25 bits per weight. w = d * (q - 1), which is -d * (code - 2) with code = 3 - q
    #   byte 0      2 + j, j = 0..15
    #        | d    | q[4j+3] | q[4j+2] | q[4j+1] | q[4j] |
    GgufType(
        "Q2_0", 42, 64, 18, 41, parse_format("int2-g64-fixed"), (_full(2, 2, 64),), code_flip=3,
        scale_code=ScaleCode.NEGATED,
    ),
    # Q2_K, 2.625 bits per weight. w = d * s[e/16] * q - dmin * m[e/16]
    #   byte g, g = 0..15    16 + 32h + l, h = 0..1, l = 0..31, at = 128h + l       80     82
    #        | m[g] | s[g]   | q[at+96] | q[at+64] | q[at+32] | q[at]               | d    | dmin |
    GgufType(
        "Q2_K", 10, 256, 84, 10, _only("q2_k"), (_full(16, 2, 256, 32),), scale_byte=80,
        minimum_byte=82, sub_scale=(_part(0, 4, range(16)),),
        sub_minimum=(_part(0, 4, range(16), 4),),
    ),
    # Q3_K, 3.4375 bits per weight. w = d * (s[e/16] - 32) * (q - 4)
    #   byte l, l = 0..31                     32 + 32h + l, low 2 bits, at = 128h + l
    #        | bit 2 of q[l+224] ... q[l]     | q[at+96] | q[at+64] | q[at+32] | q[at]
    #        96 + i, i = 0..7                 104 + k, k = 0..3, bits 5..4          108
    #        | s[8+i] low 4 | s[i] low 4      | s[k+12] | s[k+8] | s[k+4] | s[k]    | d    |
    GgufType(
        "Q3_K", 11, 256, 110, 11, _only("q3_k"),
        (_full(32, 2, 256, 32), _full(0, 1, 256, 32, low=2)), scale_byte=108,
        sub_scale=(_full(96, 4, 16, 8), _full(104, 2, 16, 4, low=4)), sub_scale_bias=32,
    ),
    # Q4_K, 4.5 bits per weight. w = d * s[e/32] * q - dmin * m[e/32]
    #   byte 0      2      4..15              16 + 32i + l, i = 0..3, l = 0..31
    #        | d    | dmin | s, m as above    | q[64i+32+l] | q[64i+l] |
    GgufType(
        "Q4_K", 12, 256, 144, 14, _only("q4_k"), (_full(16, 4, 256, 32),), minimum_byte=2,
        sub_scale=_SCALES_OF_8, sub_minimum=_MINIMA_OF_8,
    ),
    # Q5_K, 5.5 bits per weight. w = d * s[e/32] * q - dmin * m[e/32]
    #   byte 0      2      4..15              16 + l                       48 + 32i + l, low 4 bits
    #        | d    | dmin | s, m as above    | bit 4 of q[l+224] ... q[l] | q[64i+32+l] | q[64i+l]
    GgufType(
        "Q5_K", 13, 256, 176, 16, _only("q5_k"),
        (_full(48, 4, 256, 32), _full(16, 1, 256, 32, low=4)), minimum_byte=2,
        sub_scale=_SCALES_OF_8, sub_minimum=_MINIMA_OF_8,
    ),
    # Q6_K, 6.5625 bits per weight. w = d * s[e/16] * (q - 32), s an int8
    #   byte 64h + l, h = 0..1, l = 0..63             128 + 32h + l, bits 5..4, at = 128h + l
    #        | q[128h+64+l] low 4 | q[128h+l] low 4   | q[at+96] | q[at+64] | q[at+32] | q[at]
    #        192 + g, g = 0..15                       208
    #        | s[g]                                   | d    |
    GgufType(
        "Q6_K", 14, 256, 210, 18, _only("q6_k"),
        (_full(0, 4, 256, 64), _full(128, 2, 256, 32, low=4)), scale_byte=208,
        sub_scale=(_full(192, 8, 16),),
    ),
    # IQ4_NL, 4.5 bits per weight. w = d * table[q]; the bytes are Q4_0's
    GgufType("IQ4_NL", 20, 32, 18, 25, _only("iq4_nl"), (_full(2, 4, 32, 16),)),
    # IQ4_XS, 4.25 bits per weight. w = d * (s[e/32] - 32) * table[q]
    #   byte 0      2 + k, k = 0..1, bits 5..4            4 + i, i = 0..3, low 4 bits
    #        | d    | s[4k+3] | s[4k+2] | s[4k+1] | s[4k] | s[2i+1] | s[2i] |
    #        8 + 16b + l, b = 0..7, l = 0..15
    #        | q[32b+16+l] | q[32b+l] |
    GgufType(
        "IQ4_XS", 23, 256, 136, 30, _only("iq4_xs"), (_full(8, 4, 256, 16),),
        sub_scale=(_full(4, 4, 8), _full(2, 2, 8, low=4)), sub_scale_bias=32,
    ),
    # MXFP4, 4.25 bits per weight. w = 2^(e-128) * table[q]
    #   byte 0      1 + j, j = 0..15
    #        | e    | q[16+j] | q[j] |
    GgufType(
        "MXFP4", 39, 32, 17, 38, _only("mxfp4"), (_full(1, 4, 32, 16),),
        scale_code=ScaleCode.EXPONENT,
    ),
)  # fmt: skip

GGUF_TYPES: dict[str, GgufType] = {row.name: row for row in _ROWS}

UNSUPPORTED: dict[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Types that have a name and that nothing here reads."""


def find_type(name: str) -> GgufType:
    """The type of this name. Raises: UsageError, naming the types there are."""
    if name not in GGUF_TYPES:
        raise UsageError("not a GGUF type", expected=f"one of {', '.join(GGUF_TYPES)}", found=name)
    return GGUF_TYPES[name]


def type_of_id(id: int, where: object = None) -> GgufType:
    """The type that a file numbers so. Raises: CheckpointError."""
    for row in _ROWS:
        if row.id == id:
            return row
    name = UNSUPPORTED.get(id, "which has no name")
    raise CheckpointError(
        "Crumb does not read this tensor type",
        where=where,
        expected=f"one of {', '.join(GGUF_TYPES)}",
        found=f"type {id}, {name}",
        do="Choose a file in another quantization",
    )
