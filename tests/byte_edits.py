"""Random damage to a file, and the check that a reader survives it.

In: bytes and changes, or a path and who reads it. Out: damaged bytes, or whether it could be read;
anything but a typed error of one line fails, and so does much more memory than the files hold.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CrumbError

SLACK_BYTES = 3 << 20
"""Room for Python's own objects: the plan, parsed JSON, error messages."""

Edits = list[tuple[str, int, int]]
KINDS = ("flip", "set", "insert", "remove", "double")


def edits(limit: int) -> st.SearchStrategy[Edits]:
    """One to four changes within the first bytes of a file."""
    one = st.tuples(st.sampled_from(KINDS), st.integers(0, limit - 1), st.integers(0, 255))
    return st.lists(one, min_size=1, max_size=4)


def edited(raw: bytes, changes: Edits) -> bytes:
    """A file's bytes after the changes."""
    changed = bytearray(raw)
    for kind, place, value in changes:
        if not changed:
            break
        place = min(place, len(changed) - 1)
        if kind == "flip":
            changed[place] ^= 1 << value % 8
        elif kind == "set":
            changed[place] = value
        elif kind == "insert":
            changed.insert(place, value)
        elif kind == "remove":
            del changed[place : place + 1 + value % 8]
        else:
            changed[place:place] = changed[place : place + value]
    return bytes(changed)


@contextmanager
def little_memory(path: Path) -> Iterator[None]:
    """Refuse that anything allocates much more than the file or the directory's files hold."""
    files = path.iterdir() if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * size + SLACK_BYTES


def survives(path: Path, read: Callable[[Path], object]) -> bool:
    """Whether the model can be read; anything but a typed one-line error fails."""
    said = None
    with little_memory(path):
        try:
            read(path)
        except CrumbError as error:
            said = str(error)
    assert said is None or (len(said.splitlines()) == 1 and len(said) < 1500), said
    return said is None


def read_all(path: Path) -> None:
    """Open a checkpoint and read every tensor of its plan."""
    checkpoint = open_checkpoint(path)
    for spec in checkpoint.plan.tensors():
        assert checkpoint.tensors.read_float(spec.name).shape == spec.shape
