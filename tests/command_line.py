"""The `crumb` command as a user meets it: run in this process, or started as one of its own.

In: arguments. Out: exit code, stdout, stderr; or the one line of a refusal.
QUICK are the settings that quantize the tiny checkpoint in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from crumb.cli.main import main

QUICK: dict[str, object] = {
    "effort": "fast",
    "bits": 3,
    "group_size": 32,
    "calibration": "excerpt-calibration",
    "sequences": 4,
    "length": 64,
    "no_pack": True,
}

COST_LINE = "needs about "
"""How the announcement of memory, time and disk begins."""


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def err_lines(self) -> list[str]:
        """Lines of stderr, without the announced cost."""
        return [line for line in self.err.splitlines() if not line.startswith(COST_LINE)]


def quantize_line(model: object, out: object, **options: object) -> list[str]:
    """Arguments of a quick quantization; True is a bare flag, None leaves an option out.

    The embedding has 8 bits and is rounded, unless the target says what it is.
    """
    line = ["quantize", str(model), "--out", str(out)]
    rounded = {} if "target" in options else {"embedding": 8}
    for name, value in (QUICK | rounded | options).items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            line.append(flag)
        elif value is not None:
            line += [flag, str(value)]
    return line


def eval_line(model: object, *more: object) -> list[str]:
    """Arguments of a quick evaluation."""
    quick = ["--text", "excerpt-evaluation", "--window", "64", "--limit", "3"]
    return ["eval", str(model), *quick, *map(str, more)]


def crumb(capsys: pytest.CaptureFixture[str], *arguments: object) -> Finished:
    """Run a command in this process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    written = capsys.readouterr()
    return Finished(code, written.out, written.err)


def succeed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The stdout of a command that must succeed without a complaint."""
    finished = crumb(capsys, *arguments)
    assert finished.code == 0, finished.err
    assert finished.err_lines == []
    return finished.out


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line of a command that must fail with this code."""
    finished = crumb(capsys, *arguments)
    assert finished.code == code, finished
    assert finished.out == ""
    (line,) = finished.err_lines
    assert line.startswith("crumb: ")
    assert "Traceback" not in line
    return line


PROGRAM = "from crumb.cli.main import run; run()"


def start(*arguments: object, program: str = PROGRAM, **environment: str) -> subprocess.Popen[str]:
    """Start a command as a process of its own. It hears Ctrl-C even where its parent does not."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_process(*arguments: object, program: str = PROGRAM, **environment: str) -> Finished:
    """Run a command as a process of its own."""
    process = start(*arguments, program=program, **environment)
    out, err = process.communicate()
    return Finished(process.returncode, out, err)


PATIENCE_SECONDS = 120.0
"""How long a started command may do nothing, on a busy machine."""


def finished_tensors(out: Path) -> list[Path]:
    """The tensors that lie finished in an output's workspace."""
    return list(out.with_name(f"{out.name}.partial").glob("tensors/*.safetensors"))


def wait_for_tensors(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Until so many finished tensors lie in the workspace, or the process has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and len(finished_tensors(out)) < count:
        assert time.monotonic() < deadline, "the process does nothing"
        time.sleep(0.0005)


def digest(directory: Path) -> dict[str, str]:
    """The hash of every file below a directory, by its relative path."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
