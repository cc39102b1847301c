"""Files mapped into memory: one mapping and one descriptor a file, whoever needs a piece of it.

In: a path and ranges of bytes. Out: read-only arrays that are views of the mapping, which goes when
the last of them does. A file that was replaced or changed meanwhile is mapped anew.
Refuses ranges past the end of the file; a limit of open files is named as that.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError
from crumb.files.read_errors import read_errors

MAP_PAGES_NOW = 22
"""MADV_POPULATE_READ of Linux, which Python's mmap does not name."""

Identity = tuple[int, int, int, int]
"""Device, inode, time of the last change in ns, bytes: equal for the same content."""

Bytes = NDArray[np.uint8]

_mappings: WeakValueDictionary[Identity, mmap.mmap] = WeakValueDictionary()
_turn = Lock()


def map_bytes(path: Path, offset_bytes: int, size_bytes: int, at_once: bool = True) -> Bytes:
    """A range of a file where it lies, read-only. Raises: CheckpointError, DoesNotFit.

    All of its pages are mapped `at_once` where the system can: one by one they cost ten times the
    time when first touched. What may never be touched is better left where it is.
    """
    with read_errors(path):
        mapping = _mapping(path, offset_bytes + size_bytes)
    if mapping is None:
        return _frozen(np.empty(0, np.uint8))
    before = offset_bytes % mmap.PAGESIZE
    with contextlib.suppress(OSError, ValueError):  # before Linux 5.14
        if at_once:
            mapping.madvise(MAP_PAGES_NOW, offset_bytes - before, before + size_bytes)
    return np.frombuffer(mapping, np.uint8, size_bytes, offset_bytes)


def copy_bytes(path: Path, offset_bytes: int, shape: tuple[int, int], columns: slice) -> Bytes:
    """Some columns of a matrix of bytes, copied through a mapping of their own that ends with it.

    Shapes: (rows, row_bytes) in the file -> (rows, columns). Raises: CheckpointError, DoesNotFit.
    """
    before = offset_bytes % mmap.ALLOCATIONGRANULARITY
    size_bytes = shape[0] * shape[1]
    with read_errors(path), path.open("rb") as file:
        _check_end(path, os.fstat(file.fileno()).st_size, offset_bytes + size_bytes)
        with mmap.mmap(
            file.fileno(),
            before + size_bytes,
            access=mmap.ACCESS_READ,
            offset=offset_bytes - before,
        ) as mapping:
            with contextlib.suppress(OSError, ValueError):
                mapping.madvise(MAP_PAGES_NOW)
            rows = np.frombuffer(mapping, np.uint8, size_bytes, before).reshape(shape)
            columns_copy: Bytes = rows[:, columns].copy()
            del rows  # a view would keep the mapping from ending
    return columns_copy


def _mapping(path: Path, end_bytes: int) -> mmap.mmap | None:
    """The whole file, shared with everybody who has it mapped; None for an empty one."""
    with _turn:
        status = path.stat()
        _check_end(path, status.st_size, end_bytes)
        shared = _mappings.get(_identity(status))
        if shared is not None or not status.st_size:
            return shared
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # what is mapped, should the path have changed since
            _check_end(path, status.st_size, end_bytes)
            mapping = mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ)
        _mappings[_identity(status)] = mapping
        return mapping


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _check_end(path: Path, file_bytes: int, end_bytes: int) -> None:
    if file_bytes < end_bytes:
        raise CheckpointError(
            "the file ends inside a tensor",
            where=path,
            expected=f"at least {end_bytes} bytes",
            found=file_bytes,
            do="The file is truncated: copy or download it again",
        )


def _frozen(array: Bytes) -> Bytes:
    array.flags.writeable = False
    return array
