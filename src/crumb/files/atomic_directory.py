"""A directory that takes its place whole, also where an empty one is there already.

In: a finished directory beside its place. Out: the directory in its place. An empty directory that
is a mount point cannot be replaced: it is filled file by file, config.json last.
Refuses places where anything of another's lies; lost+found is the file system's own.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from crumb.errors import OutputConflict
from crumb.files.atomic_file import sync_directory
from crumb.files.model_files import CONFIGURATION

SYSTEMS_OWN = ("lost+found",)
NOT_REPLACED = (errno.EBUSY, errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What renaming onto a mount point, or a link to a directory, fails with."""


def is_free(path: Path) -> bool:
    """Whether a new directory may take this place: nothing is there, or an empty directory."""
    if not path.is_dir():
        return not path.exists() and not path.is_symlink()
    return all(entry.name in SYSTEMS_OWN for entry in path.iterdir())


def refuse_filled(path: Path) -> None:
    """Refuse a place that is not free. Raises: OutputConflict."""
    if not is_free(path):
        raise OutputConflict(
            "the output exists and will not be replaced", where=path, do="Choose another --out"
        )


def take_place(made: Path, out: Path) -> None:
    """Put a finished directory in its place, which must be free."""
    try:
        made.rename(out)
    except OSError as error:
        if error.errno not in NOT_REPLACED or not (out.is_dir() and is_free(out)):
            raise
        for file in sorted(made.iterdir(), key=lambda file: file.name == CONFIGURATION):
            shutil.move(file, out / file.name)
        made.rmdir()
        sync_directory(out)
    sync_directory(out.parent)
