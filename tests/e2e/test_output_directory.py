"""Whose an output directory is: this job's, another's, or not crumb's at all.

In: directories with something in them already. Out: refusals that say what differs; --restart
replaces what crumb made, and nothing else is ever removed.
"""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path

import pytest
from command_line import (
    crumb,
    digest,
    quantize_line,
    refusal,
    start,
    succeed,
    wait_for_tensors,
)
from tiny_checkpoint import make_tensors, write_checkpoint

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def made(tiny: Path, tmp_path: Path, capsys: Capsys) -> Path:
    """A directory that crumb made from the tiny checkpoint."""
    succeed(capsys, *quantize_line(tiny, tmp_path / "out"))
    return tmp_path / "out"


def test_the_same_command_finds_its_work_done(made: Path, tiny: Path, capsys: Capsys) -> None:
    before = digest(made)
    assert succeed(capsys, *quantize_line(tiny, made)).startswith("already quantized: ")
    assert '"already_done": true' in succeed(capsys, *quantize_line(tiny, made, json=True))
    assert digest(made) == before


@pytest.mark.parametrize(
    ("different", "named"),
    [
        ({"bits": 4}, "bits 4"),
        ({"seed": 9}, "calibration.seed 9"),
        ({"damping": 0.25}, "solve.damping 0.25"),
        ({"method": "round"}, "solve.method round"),
    ],
    ids=str,
)
def test_another_command_is_refused_and_told_what_differs(
    different: dict[str, object], named: str, made: Path, tiny: Path, capsys: Capsys
) -> None:
    before = digest(made.parent)
    line = refusal(capsys, 1, *quantize_line(tiny, made, **different))
    assert "the work of a different command" in line
    assert f"{named}" in line
    assert "group_size" not in line
    assert "--restart" in line
    assert digest(made.parent) == before


def test_another_source_is_refused(made: Path, tmp_path: Path, capsys: Capsys) -> None:
    other = write_checkpoint(tmp_path / "other", make_tensors(seed=1))
    line = refusal(capsys, 1, *quantize_line(other, made))
    assert "source_sha256" in line


def test_restart_replaces_the_work_of_another_command(
    made: Path, tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    succeed(capsys, *quantize_line(tiny, tmp_path / "four", bits=4))
    (made / "notes.txt").write_text("of the model that was here")
    succeed(capsys, *quantize_line(tiny, made, bits=4, restart=True))
    assert digest(made) == digest(tmp_path / "four")
    assert not (tmp_path / "out.partial").exists()


def test_unfinished_work_of_another_command_is_kept_until_restart(
    tiny: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    stop_after(5, monkeypatch)
    assert crumb(capsys, *quantize_line(tiny, out)).code == 130
    monkeypatch.undo()
    before = digest(partial)
    assert sum(name.startswith("tensors/") for name in before) == 5
    line = refusal(capsys, 1, *quantize_line(tiny, out, bits=4))
    assert f"{partial}: unfinished work of a different command lies here" in line
    assert "bits 4" in line
    assert digest(partial) == before
    succeed(capsys, *quantize_line(tiny, out, bits=4, restart=True))
    succeed(capsys, *quantize_line(tiny, tmp_path / "four", bits=4))
    assert digest(out) == digest(tmp_path / "four")


def test_a_command_that_had_finished_nothing_leaves_nothing(
    tiny: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(0, monkeypatch)
    assert crumb(capsys, *quantize_line(tiny, tmp_path / "out")).code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the next run in this process when it has stored so many tensors."""
    from crumb.checkpoints.crumb.workspace import Workspace

    left, store = [count], Workspace.store

    def stopping(*arguments: object) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        store(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Workspace, "store", stopping)


@pytest.mark.parametrize("restart", [None, True])
@pytest.mark.parametrize("content", ["thesis.txt", "manifest.json"])
def test_a_directory_that_crumb_did_not_make_is_never_touched(
    content: str, restart: bool | None, tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """Not one with a manifest.json of some other program either."""
    out = tmp_path / "mine"
    out.mkdir()
    (out / content).write_text('{"job": {"name": "site"}, "icons": []}')
    before = digest(tmp_path)
    line = refusal(capsys, 1, *quantize_line(tiny, out, restart=restart))
    assert "was not made by crumb" in line
    assert str(out) in line
    assert out.is_dir()
    assert digest(tmp_path) == before
    assert not (tmp_path / "mine.partial").exists()


def test_an_empty_directory_is_filled(
    made: Path, tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    succeed(capsys, *quantize_line(tiny, empty))
    assert digest(empty) == digest(made)
    assert not (tmp_path / "empty.partial").exists()


@pytest.mark.parametrize("restart", [None, True])
def test_an_output_that_is_a_file_is_refused(
    restart: bool | None, tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "out").write_text("mine")
    line = refusal(capsys, 1, *quantize_line(tiny, tmp_path / "out", restart=restart))
    assert str(tmp_path / "out") in line
    assert (tmp_path / "out").read_text() == "mine"
    assert not (tmp_path / "out.partial").exists()


def test_a_link_that_leads_nowhere_is_refused_before_the_work(
    tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """A directory cannot be renamed onto a link, which would show only at the very end."""
    (tmp_path / "out").symlink_to(tmp_path / "other-disk" / "out")
    line = refusal(capsys, 1, *quantize_line(tiny, tmp_path / "out"))
    assert str(tmp_path / "out") in line
    assert not (tmp_path / "out.partial").exists()


def test_the_source_itself_is_no_output(tiny: Path, capsys: Capsys) -> None:
    before = digest(tiny)
    refusal(capsys, 1, *quantize_line(tiny, tiny, restart=True))
    assert digest(tiny) == before


@pytest.mark.parametrize("out", ["", ".", "/", ".."])
def test_an_output_without_a_name_of_its_own_is_a_usage_error(
    out: str, tiny: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny)
    line = refusal(capsys, 2, *quantize_line(tiny, out))
    assert "--out" in line
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_missing_parent_is_made_and_a_file_as_parent_is_refused(
    tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    succeed(capsys, *quantize_line(tiny, tmp_path / "a" / "b" / "out"))
    assert (tmp_path / "a" / "b" / "out" / "manifest.json").is_file()
    (tmp_path / "file").write_text("")
    line = refusal(capsys, 1, *quantize_line(tiny, tmp_path / "file" / "out"))
    assert str(tmp_path / "file") in line


def test_a_name_that_no_file_system_takes_is_one_line(
    tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    line = refusal(capsys, 1, *quantize_line(tiny, tmp_path / ("x" * 300)))
    assert "name too long" in line.lower()


def test_a_second_process_is_refused_while_the_first_works(
    tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """The first is stopped by a signal in its middle, so that it is certainly at work."""
    out, slowly = tmp_path / "out", {"sequences": 96, "length": 96}
    first = start(*quantize_line(tiny, out, **slowly))
    wait_for_tensors(first, out, 1)
    first.send_signal(signal.SIGSTOP)
    try:
        for restart in (None, True):
            line = refusal(capsys, 1, *quantize_line(tiny, out, restart=restart, **slowly))
            assert "another process is quantizing here" in line
            assert str(out) in line
    finally:
        first.send_signal(signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    assert succeed(capsys, *quantize_line(tiny, out, **slowly)).startswith("already quantized")


def test_a_finished_output_is_reported_beside_the_remains_of_its_run(
    made: Path, tiny: Path, capsys: Capsys
) -> None:
    """A run that dies right after publishing leaves its workspace; the next command clears it."""
    remains = made.with_name("out.partial")
    (remains / "tensors").mkdir(parents=True)
    assert succeed(capsys, *quantize_line(tiny, made)).startswith("already quantized")
    assert not remains.exists()


def test_the_remains_are_left_alone_while_another_process_holds_them(
    made: Path, tiny: Path, capsys: Capsys
) -> None:
    remains = made.with_name("out.partial")
    remains.mkdir()
    with (remains / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refusal(capsys, 1, *quantize_line(tiny, made))
    assert (remains / "lock").exists()
