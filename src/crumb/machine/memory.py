"""Memory: what the machine has and has free, what this process takes and has taken at most.

In: /proc/meminfo, /proc/self/status, sysconf, getrusage, the control groups. Out: bytes.
Where a file is missing (macOS has none of them) the next source answers.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from pathlib import Path

from crumb.machine.control_groups import memory_headroom_bytes

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""What getrusage counts in: macOS in bytes, others in KiB."""


def memory_bytes() -> int:
    """All memory of the machine; the largest number where the system does not tell."""
    return _system_pages("SC_PHYS_PAGES") or sys.maxsize


def available_bytes() -> int:
    """Memory this process may still take: the machine's, or its control groups' if that is less.

    Where the system does not tell what is free, all memory counts as free.
    """
    free = _kib_row(MEMINFO, "MemAvailable") or _system_pages("SC_AVPHYS_PAGES") or memory_bytes()
    headroom = memory_headroom_bytes()
    return free if headroom is None else min(free, headroom)


def peak_memory_bytes() -> int:
    """Most memory that this process has had resident, not what its parent had before it."""
    peak = _kib_row(STATUS, "VmHWM")
    return peak or MAXRSS_UNIT_BYTES * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    """Memory that this process has resident now; its peak where the system does not tell."""
    return _kib_row(STATUS, "VmRSS") or peak_memory_bytes()


def give_back_memory() -> None:
    """Return freed blocks of the heap to the system, where its C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def _kib_row(path: Path, name: str) -> int | None:
    """A row such as "VmHWM:  1234 kB", in bytes."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    row = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(row[1]) if row else None


def _system_pages(name: str) -> int | None:
    """A number of pages that sysconf knows, in bytes."""
    try:
        pages = os.sysconf(name)
    except (ValueError, OSError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else None
