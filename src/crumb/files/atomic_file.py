"""A file that is there whole or not at all.

In: a path. Out: a file to write; it has a temporary name until all is written and synced, then the
path's. Whatever fails, nothing is left behind. Refuses, when it must be alone, a path that another
run is writing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from crumb.errors import CheckpointError, DoesNotFit, OutputConflict


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


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON: to a temporary name, synced, then renamed."""
    write_synced(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def write_synced(path: Path, content: bytes) -> None:
    """Write a small file: to a temporary name, synced, then renamed."""
    with atomic_file(path) as file:
        file.write(content)


KEPT = "Free some space and run the same command again: finished tensors are kept"


@contextmanager
def disk_errors(out: Path, do: str = KEPT) -> Iterator[None]:
    """Turn the operating system's refusals to write into typed errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DoesNotFit("the disk is full", where=out, do=do) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise CheckpointError(
                f"the output cannot be written: {error.strerror}", where=error.filename or out
            ) from error
        raise


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
