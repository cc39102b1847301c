"""A finished directory takes its place: where nothing is, and where an empty directory is.

In: directories of a few files. Out: the files in place, refusals. A mount point is imitated by
the errors that renaming onto one gives.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from crumb.errors import OutputConflict
from crumb.files.atomic_directory import is_free, refuse_filled, take_place

FILES = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}"}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("empty", [False, True])
def test_a_free_place_is_taken(empty: bool, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if empty:
        out.mkdir()
    refuse_filled(out)
    take_place(made, out)
    assert contents(out) == FILES
    assert not made.exists()


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_a_mount_point_is_filled_with_the_configuration_last(
    number: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, moved = tmp_path / "mounted", []
    (out / "lost+found").mkdir(parents=True)
    rename = os.rename

    def refuse(*_: Path) -> Path:
        raise OSError(number, os.strerror(number))

    def note(source: str, target: str) -> None:
        moved.append(Path(source).name)
        rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(os, "rename", note)
    take_place(made, out)
    assert contents(out) == FILES
    assert moved[-1] == "config.json"
    assert not made.exists()


def test_a_link_to_an_empty_directory_is_followed(made: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    take_place(made, tmp_path / "out")
    assert contents(tmp_path / "real") == FILES


def test_a_place_that_is_taken_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (made, tmp_path / "file", tmp_path / "link"):
        assert not is_free(taken)
        with pytest.raises(OutputConflict, match="will not be replaced"):
            refuse_filled(taken)


def test_an_error_of_another_kind_leaves_the_directory_where_it_is(
    made: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        take_place(made, tmp_path / "no" / "parent")
    assert contents(made) == FILES
