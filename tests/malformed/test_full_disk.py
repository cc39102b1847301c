"""A disk without room: refused before the work, or in its middle, where nothing finished is lost.

In: a disk that claims to be full, one that refuses at some byte, and a real one where the test may
mount it. Out: exit 3 in one line; the same command completes with the same bytes once there is
room.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import digest, finished_tensors, quantize_line, refusal, succeed
from tiny_checkpoint import write_checkpoint

from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.main import main
from crumb.fitting.quantize_cost import working_bytes
from crumb.pipeline import QuantizeRequest, choose_formats
from crumb.solve.problem import SolveSettings

Capsys = pytest.CaptureFixture[str]
Usage = namedtuple("Usage", "total used free")


@dataclass(frozen=True)
class Calm:
    """An undisturbed run."""

    hashes: dict[str, str]  # of its output
    written_bytes: int  # in all files together


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """A quick quantization of the tiny checkpoint on a disk without end."""
    place, room_bytes = tmp_path_factory.mktemp("calm"), 2**40
    model, disk = write_checkpoint(place / "tiny"), FillingDisk(room_bytes)
    with pytest.MonkeyPatch.context() as counted:
        disk.install(counted)
        assert main(quantize_line(model, place / "out")) == 0
    return Calm(digest(place / "out"), room_bytes - disk.room_bytes)


def needed_bytes(model: Path) -> int:
    """What the quick quantization asks of the disk."""
    checkpoint = open_checkpoint(model)
    request = QuantizeRequest(str(model), Path(), bits=3, group_size=32, embedding=8)
    formats = choose_formats(checkpoint.plan, request)
    return working_bytes(checkpoint, formats, (0, 1), SolveSettings(token_power=0.0))


def claim_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - free, free))


def test_a_disk_that_is_too_small_is_refused_before_any_work(
    tiny: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = needed_bytes(tiny)
    claim_free(monkeypatch, needed - 1)
    line = refused(3, tiny)
    assert "the disk is too small" in line
    assert f"expected {needed / 1e6:.1f} MB" in line
    assert "MB free" in line


def test_a_disk_that_just_suffices_is_used(
    tiny: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_free(monkeypatch, needed_bytes(tiny))
    succeed(capsys, *quantize_line(tiny, tmp_path / "out"))


def test_finished_tensors_count_as_space_that_is_there_already(
    tiny: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that filled the disk to the half could never be continued on it."""
    with monkeypatch.context() as limited:
        FillingDisk(30_000).install(limited)
        refusal(capsys, 3, *quantize_line(tiny, tmp_path / "out"))
    stored = sum(path.stat().st_size for path in finished_tensors(tmp_path / "out"))
    assert stored > 10_000
    claim_free(monkeypatch, needed_bytes(tiny) - stored)
    succeed(capsys, *quantize_line(tiny, tmp_path / "out"))


class FillingDisk:
    """Writes below a count of bytes succeed; the one that passes it fails as a full disk does."""

    def __init__(self, room_bytes: int, number: int = errno.ENOSPC) -> None:
        self.room_bytes, self.number = room_bytes, number

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Route every file that is opened for writing through this disk."""
        usual: Callable[..., Any] = Path.open

        def limited(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
            file = usual(path, mode, *more, **named)
            return _Limited(file, self) if mode == "wb" else file

        monkeypatch.setattr(Path, "open", limited)


class _Limited:
    def __init__(self, file: Any, disk: FillingDisk) -> None:
        self.file, self.disk = file, disk

    def write(self, data: Any) -> int:
        size = len(memoryview(data).cast("B"))
        if size > self.disk.room_bytes:
            raise OSError(self.disk.number, os.strerror(self.disk.number))
        self.disk.room_bytes -= size
        return int(self.file.write(data))

    def __enter__(self) -> _Limited:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.45, 0.8, 1.0])
def test_a_disk_that_fills_up_keeps_finished_tensors_and_the_run_continues(
    share: float,
    calm: Calm,
    tiny: Path,
    tmp_path: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In job.json, the first tensor, a later one, the assembled weights, the last small files."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with monkeypatch.context() as limited:
        FillingDisk(int(share * calm.written_bytes) - 1).install(limited)
        line = refusal(capsys, 3, *quantize_line(tiny, out))
    assert line.startswith(f"crumb: {out}: the disk is full. Free some space")
    assert not out.exists()
    assert partial.exists() == bool(finished_tensors(out))
    assert partial.exists() == (share > 0.05)  # the embedding comes first and takes a sixth
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (partial / "model").exists()
    succeed(capsys, *quantize_line(tiny, out))
    assert digest(out) == calm.hashes


def test_other_refusals_of_the_disk_are_one_line_too(
    tiny: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, code in ((errno.EDQUOT, 3), (errno.EROFS, 1), (errno.EACCES, 1), (errno.EIO, 1)):
        with monkeypatch.context() as limited:
            FillingDisk(30_000, number).install(limited)
            line = refusal(capsys, code, *quantize_line(tiny, tmp_path / f"out-{number}"))
        assert os.strerror(number) in line or "the disk is full" in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 140 kB, in memory; skips where it may not be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=140k", "crumb-test", str(place)]
    mounted = shutil.which("mount") and os.getuid() == 0
    if not mounted or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_real_disk_fills_up_and_the_run_continues_when_it_has_grown(
    small_disk: Path, calm: Calm, tiny: Path, capsys: Capsys
) -> None:
    """The estimate fits, but every file takes whole pages, so the disk fills up on the way."""
    assert needed_bytes(tiny) < shutil.disk_usage(small_disk).free
    out = small_disk / "out"
    line = refusal(capsys, 3, *quantize_line(tiny, out))
    assert line.startswith(f"crumb: {out}: the disk is full")
    assert finished_tensors(out)
    assert not out.exists()
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    succeed(capsys, *quantize_line(tiny, out))
    assert digest(out) == calm.hashes
    assert [path.name for path in small_disk.iterdir()] == ["out"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_parent_that_may_not_be_written_is_named(
    tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    line = refusal(capsys, 1, *quantize_line(tiny, locked / "out"))
    assert str(locked) in line
    assert "Permission denied" in line
