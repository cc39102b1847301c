"""What a quantized model may take: memory while it runs, bits per weight, or bytes on disk.

In: keywords, or words of the command line. Out: a Budget with one of the three.
Refuses two of them, amounts that are none, and a context where memory is not what is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crumb.errors import UsageError
from crumb.requests.fit_request import parse_bytes
from crumb.requests.number import as_float, as_integer

KINDS = ("memory", "bits_per_weight", "file_size")
"""Keywords of which one says what a model may take."""

OF_MEMORY = ("context_tokens", "parallel", "cache")
"""Keywords that memory depends on."""


@dataclass(frozen=True)
class Budget:
    """One of memory_bytes, bits_per_weight and file_bytes is there."""

    memory_bytes: int | None = None  # of the whole process
    bits_per_weight: float | None = None  # of the weight files, over all parameters
    file_bytes: int | None = None  # of the weight files
    context_tokens: int | None = None  # None: 4096, or all that the model has
    parallel: int = 1  # sequences of that length at once
    cache: str = "f16"  # or int8, f32
    swaps: int = 0  # of two matrices' formats, tried by the KL of the whole mix

    def __post_init__(self) -> None:
        for name in ("context_tokens", "parallel"):
            value = getattr(self, name)
            count = as_integer(value)
            if value is not None and (count is None or count < 1):
                raise UsageError(
                    "a count out of range", where=name, expected="1 or more", found=repr(value)[:40]
                )
            object.__setattr__(self, name, count)
        swaps = as_integer(self.swaps)
        if swaps is None or swaps < 0:
            raise UsageError(
                "a count out of range", where="swaps", expected="0 or more", found=repr(self.swaps)
            )
        object.__setattr__(self, "swaps", swaps)


def take_budget(options: dict[str, Any]) -> Budget | None:
    """The budget that keywords name, which they lose; None without one. Raises: UsageError."""
    said = {name: options.pop(name) for name in KINDS if options.get(name) is not None}
    of_memory = {name: options.pop(name) for name in OF_MEMORY if options.get(name) is not None}
    swaps = options.pop("swaps", None)
    if len(said) > 1:
        raise UsageError(
            "more than one budget", found=", ".join(said), do=f"Give one of {', '.join(KINDS)}"
        )
    if of_memory and "memory" not in said:
        raise UsageError(
            "only memory depends on this", where=", ".join(of_memory), do="Give memory too"
        )
    if swaps is not None:
        if not said:
            raise UsageError("only a budget's mix has formats to swap", do="Drop swaps")
        of_memory["swaps"] = swaps
    if "memory" in said:
        return Budget(memory_bytes=parse_bytes(said["memory"], "memory"), **of_memory)
    if "file_size" in said:
        return Budget(file_bytes=parse_bytes(said["file_size"], "file_size"), **of_memory)
    return Budget(bits_per_weight=_bits(said["bits_per_weight"]), **of_memory) if said else None


def _bits(value: object) -> float:
    bits = as_float(value)
    if bits is None or not 0 < bits <= 32:
        raise UsageError(
            "bits out of range",
            where="bits_per_weight",
            expected="such as 3.25",
            found=repr(value)[:40],
        )
    return bits
