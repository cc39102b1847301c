"""Time a piece of work, and say how much of the machine others used meanwhile.

In: the work, between start() and stop(). Out: seconds on the clock, processor seconds of this
process and of everything else. Threads that wait for each other at every step can lose a factor
of ten on a busy machine, so a timing without the others' share cannot be judged.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

IDLE_COLUMNS = (3, 4)
"""Of the first line of /proc/stat: idle, and waiting for a disk."""


@dataclass(frozen=True)
class Elapsed:
    """What a piece of work took."""

    seconds: float
    processor_seconds: float  # of this process, all threads
    other_seconds: float  # processor seconds of everything else that ran

    @property
    def others(self) -> float:
        """Processors that were busy with something else, on average."""
        return self.other_seconds / self.seconds


class Stopwatch:
    """Runs from its making to stop()."""

    def __init__(self) -> None:
        self.began = _now()

    def stop(self) -> Elapsed:
        """What passed since the start."""
        seconds, own, busy = (end - begin for begin, end in zip(self.began, _now(), strict=True))
        return Elapsed(seconds, own, max(busy - own, 0.0))


def _now() -> tuple[float, float, float]:
    """The clock, the processor seconds of this process, those of the whole machine."""
    line = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]  # guests are in user
    ticks = sum(int(count) for column, count in enumerate(line) if column not in IDLE_COLUMNS)
    busy = ticks / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), time.process_time(), busy
