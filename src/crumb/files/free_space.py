"""Room on a disk, asked before the work.

In: a place that may not be there yet, bytes. Out: nothing. Refuses a disk that is too small.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from crumb.errors import DoesNotFit


def check_free_space(place: Path, needed_bytes: int, what: str, do: str) -> None:
    """`what` needs the room. Raises: DoesNotFit."""
    disk = place
    while not disk.exists():
        disk = disk.parent
    free = shutil.disk_usage(disk).free
    if free < needed_bytes:
        raise DoesNotFit(
            f"the disk is too small for {what}",
            where=place,
            expected=f"{needed_bytes / 1e6:.1f} MB",
            found=f"{free / 1e6:.1f} MB free",
            do=do,
        )
