"""The processors: how many this process may use, their name, and what instruction sets need.

In: the affinity, the control groups' quota, /proc/cpuinfo. Out: a count and words.
Where cpuinfo is missing, the name is the architecture's and no feature is known.
"""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from crumb.machine.control_groups import processor_quota

CPUINFO = Path("/proc/cpuinfo")
FEATURE_LINES = ("flags", "features")
"""How the line of features begins on x86 and on aarch64."""


def processors() -> int:
    """Processors this process may run on, and has time on: its control groups may allow fewer."""
    quota = processor_quota()
    return _allowed() if quota is None else max(1, min(_allowed(), math.ceil(quota)))


def _allowed() -> int:
    """Processors that the system lets this process run on, where it tells, else all."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13
        count = os.process_cpu_count()
    else:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return count or 1


def processor_name() -> str:
    """The processor as the kernel names it, else the architecture."""
    names = [value for name, value in _entries() if name == "model name"]
    return names[0] if names else platform.machine()


def processor_features() -> frozenset[str]:
    """The features of the first processor, as Linux spells them."""
    lines = [value for name, value in _entries() if name in FEATURE_LINES]
    return frozenset(lines[0].split()) if lines else frozenset()


def _entries() -> list[tuple[str, str]]:
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return []
    parts = (line.partition(":") for line in lines)
    return [(name.strip().lower(), value.strip()) for name, _, value in parts]
