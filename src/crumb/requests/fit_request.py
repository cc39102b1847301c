"""What is asked of a fit: models, memory, context, how many sequences at once.

In: keywords, or words of the command line. Out: a FitRequest. Bytes are numbers or words such as
"8GiB" and "6.5 GB". Refuses amounts that are none and counts out of range.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypedDict, Unpack

from crumb.errors import UsageError
from crumb.requests.keywords import check_known
from crumb.requests.number import as_integer

UNITS = {
    unit: base**power
    for power, letter in enumerate(("", "k", "m", "g", "t"))
    for unit, base in ((letter, 1000), (f"{letter}b", 1000), (f"{letter}ib", 1024))
    if unit
}
"""GB is 10^9 bytes, GiB 2^30; a letter alone means the former."""

AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(amount: int | str, where: str) -> int:
    """Bytes from a number or a word. Raises: UsageError."""
    count = as_integer(amount)
    if count is None and isinstance(amount, str):
        named = AMOUNT.fullmatch(amount)
        unit = None if named is None else UNITS.get(named[2].lower() or "b")
        if named is not None and unit is not None:
            count = round(float(named[1]) * unit)
    if count is None or count < 1:
        raise UsageError(
            "not an amount of memory",
            where=where,
            expected="such as 8GiB, 6.5GB or 4000000000",
            found=repr(amount)[:40],
        )
    return count


@dataclass(frozen=True)
class FitRequest:
    """Everything that decides what fits."""

    models: tuple[str, ...]
    memory_bytes: int | None = None  # None: what this process may still take
    context_tokens: int | None = None  # None: 4096, or all that the model has
    parallel: int = 1  # sequences of that length at once
    cache: str = "f16"  # or int8, f32
    threads: int | None = None  # None: all processors of this process
    speed: bool = True  # whether tokens/s are predicted from a probe of this machine

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("there is no model", do="Name at least one")
        for name in ("context_tokens", "parallel", "threads"):
            value = getattr(self, name)
            count = as_integer(value)
            if value is not None and (count is None or count < 1):
                raise UsageError(
                    "a count out of range", where=name, expected="1 or more", found=repr(value)[:40]
                )
            object.__setattr__(self, name, count)


class FitOptions(TypedDict, total=False):
    """The fields of FitRequest as keywords, but for the models; memory may be a word."""

    memory: int | str | None
    context_tokens: int | None
    parallel: int
    cache: str
    threads: int | None
    speed: bool


def make_fit_request(models: tuple[str, ...], **options: Unpack[FitOptions]) -> FitRequest:
    """A request from keywords. Raises: UsageError."""
    memory = options.pop("memory", None)
    check_known(options, "a fit", FitRequest)
    memory_bytes = None if memory is None else parse_bytes(memory, "memory")
    return FitRequest(models, memory_bytes=memory_bytes, **options)  # type: ignore[misc]
