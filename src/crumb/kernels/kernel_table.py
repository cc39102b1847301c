"""Which kernel multiplies what: instruction sets, and for one set a row per format.

In: what is compiled in, what this machine runs, CRUMB_ISA. Out: records for `crumb kernels`.
The instructions are named as native/registers_*.inl and native/amx_matmul.inl use them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from crumb import _native
from crumb.formats.catalog import CATALOG, ScaleKind, ZeroKind
from crumb.kernels.dispatch import selected_set
from crumb.machine.processors import processor_features


@dataclass(frozen=True)
class InstructionSet:
    """One set that is compiled in."""

    name: str
    runs: bool
    needs: str
    missing: tuple[str, ...]  # features that Linux does not list
    chosen: bool
    why: str


@dataclass(frozen=True)
class Kernel:
    """What multiplies the matrices of one format."""

    format: str  # row of the catalog
    zeros: tuple[str, ...]
    few_tokens: int  # up to so many, codes are unpacked in registers each time
    few: str  # the instruction
    more: str  # for more tokens: unpacked once
    exact: str  # with --activations f32


@dataclass(frozen=True)
class Dot:
    """How a set multiplies int8 activations."""

    few: str
    more: str
    fused: str  # multiply-add of f32


DOTS: dict[str, Dot] = {
    "baseline": Dot("16-bit products", "16-bit products", "mul, add"),
    "avx2": Dot("vpmaddubsw", "vpmaddubsw", "vfmadd 256"),
    "avx512": Dot("vpdpbusd", "vpdpbusd", "vfmadd 512"),
    "amx": Dot("vpdpbusd", "tdpbssd", "vfmadd 512"),
    "neon-dotprod": Dot("sdot", "sdot", "fmla"),
    "neon-i8mm": Dot("sdot", "sdot", "fmla"),
}

WIDE_CODES = {
    ("amx", ZeroKind.VARIABLE): ("vpdpbusd", "tdpbsud"),
    ("amx", ZeroKind.MINIMUM): ("vpdpbusd", "tdpbsud"),
    ("neon-i8mm", ZeroKind.FIXED): ("usdot", "usdot"),
    ("neon-i8mm", ZeroKind.VARIABLE): ("usdot", "usdot"),
    ("neon-i8mm", ZeroKind.MINIMUM): ("usdot", "usdot"),
}
"""Where 8-bit codes go another way: the instructions for few tokens and for more."""

SCALED_CODES = {"amx": "tdpbsud"}
"""The instruction for more tokens where codes times sub-scales are unsigned bytes: 2 and 3 bits."""

LETTERS_ONLY = ("fma", "asimddp")
"""Features that could be words; all others have a digit or an underscore."""


def instruction_sets() -> list[InstructionSet]:
    """Every set that is compiled in, slowest first. Raises: UsageError for a CRUMB_ISA unknown."""
    chosen, features = selected_set(), processor_features()
    rows = []
    needed: dict[str, list[str]] = {}
    for name, runs, needs in _native.compiled_sets():
        needed[name] = _features(needs, needed)
        missing = tuple(word for word in needed[name] if features and word not in features)
        rows.append(
            InstructionSet(name, runs, needs, missing, name == chosen, _why(name, runs, missing))
        )
    return rows


def _features(needs: str, earlier: dict[str, list[str]]) -> list[str]:
    """The processor's features among the words of `needs`; an earlier set stands for its own."""
    features: list[str] = []
    for word in re.findall(r"\w+", needs):
        if word in earlier:
            features += earlier[word]
        elif word in LETTERS_ONLY or not word.isalpha():
            features.append(word)
    return features


def _why(name: str, runs: bool, missing: tuple[str, ...]) -> str:
    if not runs:
        lacks = ", ".join(missing)
        return f"the processor lacks {lacks}" if lacks else "the system gives no leave to use it"
    forced = os.environ.get("CRUMB_ISA")
    if name == selected_set():
        return "CRUMB_ISA asks for it" if forced else "the fastest that this machine runs"
    return "CRUMB_ISA asks for another" if forced else "a faster one runs here"


def kernels_of(isa: str) -> list[Kernel]:
    """A row for each row of the catalog and the zero kinds that go the same way."""
    rows: list[Kernel] = []
    for code in CATALOG.values():
        by_way: dict[tuple[str, str], list[str]] = {}
        for zero in code.zeros:
            few, more = DOTS[isa].few, DOTS[isa].more
            if code.bits == 8 and (isa, zero) in WIDE_CODES:
                few, more = WIDE_CODES[isa, zero]
            if code.scale is ScaleKind.SUPER and code.bits <= 3:
                more = SCALED_CODES.get(isa, more)
            by_way.setdefault((few, more), []).append(zero.value)
        for (few, more), zeros in by_way.items():
            exact = f"decoded to f32, {DOTS[isa].fused}"
            few_tokens = _native.FEW_TOKENS[isa]
            rows.append(Kernel(code.name, tuple(zeros), few_tokens, few, more, exact))
    plain = f"widened to f32, {DOTS[isa].fused}"
    rows.append(Kernel("float16, bfloat16, float32", (), 0, plain, plain, plain))
    return rows
