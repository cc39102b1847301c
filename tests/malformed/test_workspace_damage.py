"""Finished tensors that a crash damaged: they are solved again, and the bytes come out the same.

In: a workspace whose files were cut, emptied or replaced. Out: the undisturbed run's output.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import crumb, digest, finished_tensors, quantize_line, refusal, succeed
from tiny_checkpoint import write_checkpoint, write_raw, write_safetensors

from crumb.checkpoints.crumb.workspace import Workspace
from crumb.cli.main import main

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoint, an undisturbed output, and a run stopped at its end."""
    place = tmp_path_factory.mktemp("stopped")
    model = write_checkpoint(place / "tiny")
    assert main(quantize_line(model, place / "calm")) == 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Workspace, "publish", interrupt)
        assert main(quantize_line(model, place / "out")) == 130
    return place


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy whose workspace may be damaged."""
    return Path(shutil.copytree(stopped, tmp_path / "folder"))


def cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw[: int(share * len(raw))])

    return damage


def other_metadata(metadata: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tiles = '"tiles": {"dtype": "U8", "shape": [1, 448], "data_offsets": [0, 448]}'
        write_raw(path, f'{{"__metadata__": {metadata}, {tiles}}}'.encode(), bytes(448))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": cut(0.0),
    "a few bytes": cut(0.005),
    "half the header": cut(0.1),
    "half": cut(0.5),
    "all but the end": cut(0.999),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "text": lambda path: path.write_text("tensor") and None,
    "another program's file": lambda path: write_safetensors(path, {"a": np.zeros(3, np.float32)}),
    "no metadata": other_metadata("{}"),
    "no record": other_metadata('{"format": "int3-g32-fixed 1 64"}'),
    "broken record": other_metadata('{"format": "int3-g32-fixed 1 64", "record": "{"}'),
    "record is a list": other_metadata('{"format": "int3-g32-fixed 1 64", "record": "[]"}'),
    "unknown format": other_metadata('{"format": "int9 1 64", "record": "{}"}'),
    "no sizes": other_metadata('{"format": "int3-g32-fixed", "record": "{}"}'),
    "one size": other_metadata('{"format": "int3-g32-fixed 64", "record": "{}"}'),
    "tiles of another format": other_metadata('{"format": "int4-g32-fixed 1 64", "record": "{}"}'),
    "tiles of more rows": other_metadata('{"format": "int3-g32-fixed 17 64", "record": "{}"}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_tensor_is_solved_again(
    damage: Callable[[Path], None], folder: Path, capsys: Capsys
) -> None:
    """The largest file is the embedding's, the smallest a key's: one before calibration, one in
    it."""
    files = sorted(finished_tensors(folder / "out"), key=lambda path: path.stat().st_size)
    assert len(files) == 22
    for path in (files[0], files[-1]):
        damage(path)
    succeed(capsys, *quantize_line(folder / "tiny", folder / "out"))
    assert digest(folder / "out") == digest(folder / "calm")


def test_all_tensors_may_be_damaged_at_once(folder: Path, capsys: Capsys) -> None:
    for place, path in enumerate(finished_tensors(folder / "out")):
        list(DAMAGES.values())[place % len(DAMAGES)](path)
    succeed(capsys, *quantize_line(folder / "tiny", folder / "out"))
    assert digest(folder / "out") == digest(folder / "calm")


def test_leftovers_of_a_kill_are_cleared_away(folder: Path, capsys: Capsys) -> None:
    partial = folder / "out.partial"
    (partial / "tensors" / "0123456789abcdef.safetensors.tmp").write_bytes(b"half")
    (partial / "job.json.tmp").write_bytes(b"{")
    (partial / "model").mkdir()
    (partial / "model" / "model.safetensors").write_bytes(b"half a model")
    (partial / "model" / "model-00007-of-00009.safetensors").write_bytes(b"of another day")
    succeed(capsys, *quantize_line(folder / "tiny", folder / "out"))
    assert digest(folder / "out") == digest(folder / "calm")
    assert not partial.exists()


@pytest.mark.parametrize("job", [b"", b"{", b"[]", b"{}", None], ids=str)
def test_work_whose_job_is_unknown_is_kept_until_restart(
    job: bytes | None, folder: Path, capsys: Capsys
) -> None:
    path = folder / "out.partial" / "job.json"
    path.unlink()
    if job is not None:
        path.write_bytes(job)
    line = quantize_line(folder / "tiny", folder / "out")
    assert "--restart to discard that work" in refusal(capsys, 1, *line)
    assert len(finished_tensors(folder / "out")) == 22
    succeed(capsys, *line, "--restart")
    assert digest(folder / "out") == digest(folder / "calm")


def test_a_workspace_that_is_a_file_is_refused(folder: Path, capsys: Capsys) -> None:
    (folder / "new.partial").write_text("mine")
    finished = crumb(capsys, *quantize_line(folder / "tiny", folder / "new"))
    assert finished.code == 1
    assert "new.partial" in finished.err
    assert (folder / "new.partial").read_text() == "mine"
