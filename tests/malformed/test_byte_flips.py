"""Random damage: whatever bytes change, only typed errors come out, and memory stays small.

In: the files of tiny checkpoints with bytes flipped, inserted or taken out. Out: a checkpoint that
opens and reads, or one CrumbError of one line.
"""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import quantize_line
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb.checkpoints.huggingface import open_checkpoint
from crumb.checkpoints.manifest import read_manifest
from crumb.cli.main import main
from crumb.errors import CrumbError
from crumb.run.tokenizer import load_tokenizer

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
def little_memory(directory: Path) -> Iterator[None]:
    """Refuse that anything allocates much more than the directory's files hold."""
    size = sum(path.stat().st_size for path in directory.iterdir())
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * size + SLACK_BYTES


def survives(directory: Path, read: Callable[[Path], object]) -> bool:
    """Whether the directory can be read; anything but a typed one-line error fails the test."""
    said = None
    with little_memory(directory):
        try:
            read(directory)
        except CrumbError as error:
            said = str(error)
    assert said is None or (len(said.splitlines()) == 1 and len(said) < 1500)
    return said is None


def read_all(directory: Path) -> None:
    """Open a checkpoint and read every tensor of its plan."""
    checkpoint = open_checkpoint(directory)
    for spec in checkpoint.plan.tensors():
        assert checkpoint.tensors.read_float(spec.name).shape == spec.shape


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one block in two shards, and a quantized one."""
    place = tmp_path_factory.mktemp("original")
    tensors = make_tensors(blocks=1)
    write_checkpoint(place / "single", tensors)
    write_checkpoint(place / "sharded", tensors, shards=2)
    line = quantize_line(place / "single", place / "packed", method="round", zero="minimum")
    assert main(line) == 0
    return place


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory, original: Path) -> Path:
    """Copies of these directories, one of whose files is overwritten again and again."""
    place = tmp_path_factory.mktemp("scratch") / "copies"
    return Path(shutil.copytree(original, place))


HEADER_BYTES = 1700
"""About as long as the header of each of these files."""

FILES: dict[str, tuple[str, int]] = {
    "single/model.safetensors": ("single", HEADER_BYTES),
    "packed/model.safetensors": ("packed", 2 * HEADER_BYTES),
    "single/config.json": ("single", 360),
    "packed/config.json": ("packed", 480),
    "sharded/model.safetensors.index.json": ("sharded", 850),
}


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=100)
def test_a_damaged_checkpoint_opens_or_says_why_not(
    name: str, original: Path, scratch: Path, data: st.DataObject
) -> None:
    directory, limit = FILES[name]
    changes = data.draw(edits(limit))
    raw = (original / name).read_bytes()
    assert limit <= len(raw)
    (scratch / name).write_bytes(edited(raw, changes))
    survives(scratch / directory, read_all)
    (scratch / name).write_bytes(raw)


@given(changes=edits(400))
@settings(max_examples=60)
def test_a_damaged_manifest_is_read_or_refused(
    changes: Edits, original: Path, scratch: Path
) -> None:
    raw = (original / "packed" / "manifest.json").read_bytes()
    (scratch / "packed" / "manifest.json").write_bytes(edited(raw, changes))
    survives(scratch / "packed", read_manifest)
    (scratch / "packed" / "manifest.json").write_bytes(raw)


@given(changes=edits(6000))
@settings(max_examples=60)
def test_a_damaged_tokenizer_is_read_or_refused(
    changes: Edits, original: Path, scratch: Path
) -> None:
    path = scratch / "single" / "tokenizer.json"
    raw = (original / "single" / "tokenizer.json").read_bytes()
    path.write_bytes(edited(raw, changes))
    survives(scratch / "single", lambda directory: load_tokenizer(directory).encode("a b"))
    path.write_bytes(raw)


def test_the_damage_is_neither_always_nor_never_fatal(original: Path, scratch: Path) -> None:
    """A test that never reads, or never refuses, would show nothing."""
    path = scratch / "single" / "config.json"
    raw = (original / "single" / "config.json").read_bytes()
    fates = set()
    for place in range(0, 400, 7):
        path.write_bytes(edited(raw, [("flip", place, 0)]))
        fates.add(survives(scratch / "single", read_all))
    path.write_bytes(raw)
    assert fates == {True, False}
