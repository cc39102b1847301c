"""The file that a quantization is made for, its target: which formats it holds unchanged.

In: gguf:TYPE or gptq. Out: a Target: the format of a stage, what a matrix falls back to.
GGUF's fallbacks are those of llama.cpp's quantizer, but for types that no solver here has.
Refuses names of no type, and formats that the file cannot hold as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from crumb.errors import UsageError
from crumb.formats.catalog import (
    INTEGERS,
    Format,
    ZeroKind,
    make_format,
    parse_format,
)
from crumb.formats.layouts.gguf_conversion import (
    EXACT,
    TYPE_OF_BITS,
    exact_type,
    that_fits,
)
from crumb.formats.layouts.gguf_types import GGUF_TYPES

TYPES: dict[str, Format] = {
    row.name.lower(): row.format for row in GGUF_TYPES.values() if row.format is not None
}
"""GGUF's types that have codes, as they are spelled here."""

FLOATS = ("float", "f16", "bf16", "f32")
"""Names that leave a matrix as the source has it."""

GPTQ_BITS = (2, 3, 4, 8)
GPTQ_WORD = 32
"""GPTQ packs whole words of 32 codes, in both directions."""


@dataclass(frozen=True)
class Asked:
    """What was asked of a stage's matrices by numbers."""

    bits: int | None
    group_size: int
    zero: ZeroKind


class Target(Protocol):
    """What a file can hold."""

    @property
    def lowest_zero_point(self) -> int:
        """Of a variable zero."""
        ...

    def format_of(self, stage: str, asked: Asked) -> Format | None:
        """The format of blocks, embedding or head; None leaves them float. Raises: UsageError."""
        ...

    def check(self, stage: str, format: Format | None) -> None:
        """Refuse a format that no matrix of the stage can have. Raises: UsageError."""
        ...

    def fit(self, format: Format, shape: tuple[int, ...]) -> tuple[Format | None, str | None]:
        """What a matrix of this shape gets, and why if that is not this format."""
        ...


@dataclass(frozen=True)
class GgufTarget:
    """A GGUF file whose blocks are of one type."""

    type: str
    lowest_zero_point: int = 0

    def format_of(self, stage: str, asked: Asked) -> Format | None:
        if stage != "blocks":
            if asked.bits not in TYPE_OF_BITS:
                raise UsageError(
                    "no GGUF type for this many bits",
                    expected=f"one of {', '.join(map(str, TYPE_OF_BITS))}, or a type's name",
                    found=asked.bits,
                )
            return TYPES[TYPE_OF_BITS[asked.bits].lower()]
        format = TYPES[self.type]
        if asked.bits not in (None, format.bits):
            raise UsageError(
                "the bits contradict the target",
                expected=f"{format.bits}, or no bits at all, for gguf:{self.type}",
                found=asked.bits,
            )
        return format

    def check(self, stage: str, format: Format | None) -> None:
        if format is not None and (format.row.name, format.zero) not in EXACT:
            raise UsageError(
                "no GGUF type holds this format unchanged",
                where=stage,
                expected=f"one of {', '.join(TYPES)} or float",
                found=format.name,
            )

    def fit(self, format: Format, shape: tuple[int, ...]) -> tuple[Format | None, str | None]:
        if exact_type(format, shape[1]) is not None:
            return format, None
        name = next((name for name, of_type in TYPES.items() if of_type == format), None)
        other = None if name is None else that_fits(name.upper(), shape[1]).lower()
        why = f"{shape[1]} inputs are not in whole blocks of {name or format.name}"
        if other in TYPES:
            return TYPES[other], f"{other}: {why}"
        return None, f"left float: {why}"


@dataclass(frozen=True)
class GptqTarget:
    """A GPTQ file of the first version: linear layers of the blocks, zero points from 1 on."""

    lowest_zero_point: int = 1

    def format_of(self, stage: str, asked: Asked) -> Format | None:
        if stage != "blocks":
            return None
        if asked.bits is None:
            raise UsageError("nothing says how many bits", do="Give bits: 2, 3, 4 or 8")
        format = make_format(asked.bits, asked.group_size, asked.zero)
        self.check(stage, format)
        return format

    def check(self, stage: str, format: Format | None) -> None:
        if format is None:
            return
        if stage != "blocks":
            raise UsageError(f"a GPTQ file keeps the {stage} float", found=format.name)
        integer = format.row.name in INTEGERS and format.bits in GPTQ_BITS
        if not integer or format.zero is ZeroKind.MINIMUM:
            raise UsageError(
                "GPTQ files cannot hold this format",
                expected="2, 3, 4 or 8 bits, a fixed or variable zero",
                found=format.name,
            )

    def fit(self, format: Format, shape: tuple[int, ...]) -> tuple[Format | None, str | None]:
        if shape[0] % GPTQ_WORD or shape[1] % GPTQ_WORD:
            return None, f"left float: {shape[0]} x {shape[1]} is not in words of {GPTQ_WORD}"
        return format, None


def parse_target(name: str) -> Target:
    """What gguf:TYPE or gptq means. Raises: UsageError."""
    container, _, type = name.lower().partition(":")
    if container == "gptq" and not type:
        return GptqTarget()
    if container == "gguf" and type in TYPES:
        return GgufTarget(type)
    raise UsageError(
        "not a target",
        where="target",
        expected=f"gptq, or gguf: and one of {', '.join(TYPES)}",
        found=repr(name[:40]),
    )


def format_named(name: str) -> Format | None:
    """A GGUF type, a format's name, or float (None). Raises: UsageError."""
    if name.lower() in FLOATS:
        return None
    if name.lower() in TYPES:
        return TYPES[name.lower()]
    try:
        return parse_format(name)
    except UsageError as error:
        raise UsageError(
            "neither a GGUF type nor a format's name",
            expected=f"one of {', '.join(TYPES)}, float, or such as int3-g128-variable",
            found=repr(name[:80]),
        ) from error
