"""What to do with what fits: the command that makes it, and what more or less memory would change.

In: the rows of a model, the best of them, the memory. Out: sentences. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from crumb.fitting.report import FitRow

CACHE_SHARE = 0.25
"""Of the memory that a cache takes where a shorter context is worth a word."""

BETTER = 0.75
"""A row is worth more memory where it has at most this share of the loss."""


def advice_of(
    model: str,
    rows: Sequence[FitRow],
    best: int | None,
    limit: int,
    context: int,
    parallel: int,
    cache: str,
) -> tuple[str, ...]:
    """Sentences about the rows; `limit` is the memory there is."""
    said = []
    if best is None:
        smallest = min(rows, key=lambda row: row.memory_bytes)
        lacking = smallest.memory_bytes - limit
        said.append(f"nothing fits: {smallest.format} lacks {_size(lacking)}")
        shown = smallest
    else:
        shown = rows[best]
        said += _with_more(rows, shown, limit)
        if shown.quality is not None and not all(row.lies_here for row in rows):
            said.append(
                "a format for each matrix uses all of it and loses less: crumb quantize"
                f" {model} --memory {limit >> 20}MiB --context {context}"
                f"{_unless(parallel, 1, 'parallel')}{_unless(cache, 'f16', 'cache')}"
            )
    if shown.memory.cache_bytes > CACHE_SHARE * shown.memory_bytes:
        half = _size(shown.memory.cache_bytes / 2)
        said.append(
            f"the cache takes {_size(shown.memory.cache_bytes)}: half the context"
            f" of {context} tokens gives {half} back"
        )
        if cache != "int8":
            said.append("--cache int8 takes about half of f16's")
    return tuple(said)


def _unless(value: object, usual: object, option: str) -> str:
    return "" if value == usual else f" --{option} {value}"


def _with_more(rows: Sequence[FitRow], best: FitRow, limit: int) -> list[str]:
    """What the next rows that do not fit would bring."""
    if best.quality is None:
        return ["the model fits as it is: fewer bits would only make it faster"]
    larger = sorted((row for row in rows if not row.fits), key=lambda row: row.memory_bytes)
    for row in larger:
        kl = 0.0 if row.quality is None else row.quality.kl
        if kl <= BETTER * best.quality.kl:
            more = _size(row.memory_bytes - limit)
            loss = "has no loss" if kl == 0 else f"has {kl / best.quality.kl:.0%} of the loss"
            return [f"{more} more: {row.format} {loss}"]
    return []


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
