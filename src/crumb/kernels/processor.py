"""The processor as Linux describes it: its name, and the features that instruction sets need.

In: /proc/cpuinfo. Out: words. Where the file is missing, the name is the architecture's and no
feature is known.
"""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FEATURE_LINES = ("flags", "features")
"""How the line of features begins on x86 and on aarch64."""


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
