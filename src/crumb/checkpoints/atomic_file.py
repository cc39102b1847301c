"""A file that is there whole or not at all.

In: a path. Out: a file to write; it has a temporary name until all is written and synced, then the
path's. Whatever fails, nothing is left behind. Refuses, when it must be alone, a path that another
run is writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from crumb.errors import OutputConflict


@contextmanager
def atomic_file(path: Path, alone: bool = False) -> Iterator[BinaryIO]:
    """The file under its temporary name. Raises: OutputConflict when `alone` and one is there."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        opened = temporary.open("xb" if alone else "wb")
    except FileExistsError as error:
        raise OutputConflict(
            "another run is at work here, or was killed",
            where=temporary,
            do="Wait for it, or remove this file, or choose another --out",
        ) from error
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it would keep the space
        raise
