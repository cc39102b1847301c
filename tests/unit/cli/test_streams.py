"""The command where stdin, stdout or stderr is closed, or is a terminal without escape codes.

In: processes started as a daemon or an editor starts them. Out: exit codes and what was said.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crumb.cli import output
from crumb.progress import Progress

PROGRAM = "from crumb.__main__ import run; run()"


def finish(*arguments: str, closed: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
    """Run a command that finds some of its streams closed."""

    def close() -> None:
        for number in closed:
            os.close(number)

    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=close,
    )


@pytest.fixture(scope="module")
def whole() -> subprocess.CompletedProcess[str]:
    return finish("formats", closed=())


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_command_with_closed_streams_does_its_work(
    closed: tuple[int, ...], whole: subprocess.CompletedProcess[str]
) -> None:
    finished = finish("formats", closed=closed)
    assert finished.returncode == 0
    assert finished.stdout == ("" if 1 in closed else whole.stdout)
    assert finished.stderr == ""


def test_a_prompt_from_a_closed_stdin_is_an_empty_text() -> None:
    finished = finish("generate", "novella-7m", "-", "--max-tokens", "2", closed=(0,))
    assert finished.returncode in (0, 2)
    assert "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()


def test_a_refusal_without_stderr_keeps_its_exit_code() -> None:
    assert finish("show", "no-such-model", closed=(1, 2)).returncode == 4


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Or what is printed would land in it."""
    victim = tmp_path / "file"
    program = (
        "import sys; from crumb.__main__ import open_streams; open_streams();"
        "file = open(sys.argv[1], 'w'); print('lost'); sys.stderr.write('lost');"
        "sys.stdout.flush(); sys.exit(file.fileno())"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, str(victim)],
        check=False,
        preexec_fn=lambda: os.closerange(0, 3),
    )
    assert process.returncode > 2
    assert victim.read_text() == ""


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_a_dumb_terminal_gets_no_escape_codes(
    terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(output, "LINE_SECONDS", 0.0)
    output.log_dim("a line")
    with output.progress_bar() as bar:
        bar(Progress(0.5, "half of it", 3.0))
    assert "a line" in screen.getvalue()
    assert ("\x1b" in screen.getvalue()) == (terminal != "dumb")


def test_no_color_keeps_a_line_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    output.log_dim("a line")
    assert screen.getvalue() == "a line\n"
