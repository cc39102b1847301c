"""What long work tells: its Cost before it starts, then its Progress, in one shape everywhere.

In: a listener, shares of the work that are done. Out: Progress, with the time that is left. A
listener is called in the thread that works; what it raises ends the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """An estimate; memory is the peak of the process, working bytes that of the disk."""

    memory_bytes: int
    seconds: float
    working_bytes: int = 0
    output_bytes: int = 0  # of the working bytes, those that stay


@dataclass(frozen=True)
class Progress:
    """How far long work is."""

    share: float  # that is done, 0 to 1
    doing: str
    seconds_left: float | None  # None while nothing is done


CostListener = Callable[[Cost], None]
ProgressListener = Callable[[Progress], None]


def untold(news: Cost | Progress) -> None:
    """The listener where nobody listens."""


class ProgressClock:
    """Tells a listener of shares; knows from its own begin how long the rest takes."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener, self._begin = listener, time.monotonic()

    def __call__(self, share: float, doing: str) -> None:
        """So much is done, and this comes next."""
        seconds = time.monotonic() - self._begin
        left = seconds * (1 - share) / share if share > 0 else None
        self._listener(Progress(share, doing, left))
