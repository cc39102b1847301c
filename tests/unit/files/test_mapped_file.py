"""Files mapped once, whoever needs a piece of them; limits of open files named as that.

In: files of random bytes. Out: views, open descriptors, errors.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crumb.errors import CheckpointError
from crumb.files.mapped_file import copy_bytes, map_bytes

DESCRIPTORS = Path("/proc/self/fd")

needs_proc = pytest.mark.skipif(not DESCRIPTORS.exists(), reason="descriptors are counted in /proc")


def open_files() -> int:
    """How many descriptors this process has, without those that wait to be collected."""
    gc.collect()
    return sum(1 for _ in DESCRIPTORS.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bytes"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes())
    return path


@needs_proc
def test_a_thousand_pieces_of_a_file_cost_one_descriptor(path: Path) -> None:
    content, before = path.read_bytes(), open_files()
    pieces = [map_bytes(path, 97 * place, 97) for place in range(1000)]
    assert open_files() - before == 1
    for place, piece in enumerate(pieces):
        assert piece.tobytes() == content[97 * place : 97 * place + 97]
    del piece, pieces[1:]
    assert pieces[0].tobytes() == content[:97]
    pieces.clear()
    assert open_files() == before


@needs_proc
def test_two_names_of_one_file_share_its_mapping(path: Path) -> None:
    before = open_files()
    other = path.with_name("other")
    other.hardlink_to(path)
    one, two = map_bytes(path, 0, 10), map_bytes(other, 0, 10)
    assert open_files() - before == 1
    assert one.ctypes.data == two.ctypes.data


def test_a_file_that_took_the_place_of_another_is_mapped_anew(path: Path) -> None:
    earlier, content = map_bytes(path, 0, 100), path.read_bytes()
    newer = path.with_name("newer")
    newer.write_bytes(bytes(100_000))
    newer.replace(path)
    assert map_bytes(path, 0, 100).tobytes() == bytes(100)
    assert earlier.tobytes() == content[:100]


def test_nothing_of_an_empty_file_is_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    piece = map_bytes(tmp_path / "empty", 0, 0)
    assert piece.shape == (0,)
    assert not piece.flags.writeable


def test_ranges_past_the_end_are_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ends inside a tensor.*100001.*found 100000"):
        map_bytes(path, 1, 100_000)
    with pytest.raises(CheckpointError, match="ends inside a tensor"):
        copy_bytes(path, 1, (1000, 100), slice(0, 1))


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 50_001])
def test_columns_are_those_of_the_file(path: Path, offset: int) -> None:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    matrix = content[offset : offset + 40_000].reshape(400, 100)
    for columns in (slice(0, 100), slice(3, 4), slice(50, 50), slice(99, 100)):
        piece = copy_bytes(path, offset, (400, 100), columns)
        assert np.array_equal(piece, matrix[:, columns])
        assert piece.flags.owndata


LIMITED = """
import resource, sys
from pathlib import Path
import crumb
from crumb.errors import DoesNotFit
from crumb.files.mapped_file import map_bytes

limit, path = 64, Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
held = []
try:
    while True:
        held.append(open(path))
except OSError:
    pass
try:
    map_bytes(path, 0, 1)
except DoesNotFit as error:
    held.clear()
    print(error)
"""


def test_the_limit_of_open_files_is_named_and_the_file_not_blamed(path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("this process may not open more files (expected at most 64 open files")
    assert "ulimit -n" in said
