"""A run that is stopped anywhere continues to the same bytes when its command is repeated.

In: processes that are killed, interrupted, or that die at a chosen change of the disk. Out: the
output of an undisturbed run. The slow version kills the trained model's run 30 times.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import (
    digest,
    finished_tensors,
    quantize_line,
    run_process,
    start,
    succeed,
    wait_for_tensors,
)
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb import quantize_run
from crumb.embedded import MODELS
from crumb.solve.problem import LayerProblem, LayerSolution

MATRICES = 22
"""Of the tiny checkpoint: 7 in each block, and the embedding."""

KILLS = 2
"""Of the tiny checkpoint's run."""

SLOWLY = {"sequences": 96, "length": 96}
"""Settings that leave time between two finished tensors to strike."""


def test_kills_change_no_byte(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(capsys, *quantize_line(tiny, tmp_path / "calm", **SLOWLY))
    out = tmp_path / "killed"
    line = quantize_line(tiny, out, **SLOWLY)
    moments = sorted(random.Random(5).sample(range(1, MATRICES - 2), KILLS))
    left = []
    for moment in moments:
        process = start(*line)
        wait_for_tensors(process, out, moment)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the kill came after the end"
        left.append(len(finished_tensors(out)))
    assert not out.exists()
    assert all(moment <= found < MATRICES for moment, found in zip(moments, left, strict=True))
    assert left == sorted(left), "finished work was lost"
    succeed(capsys, *line)
    assert digest(out) == digest(tmp_path / "calm")
    assert not out.with_name("killed.partial").exists()


DIES = """
import os, shutil, signal, sys
from pathlib import Path
import crumb.cli.quantize
from crumb.cli.main import main

earlier, folder, *line = sys.argv[1:]

def child(number):
    left = number

    def dying(function):
        def wrapped(*arguments, **named):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)
        return wrapped

    os.fsync = dying(lambda handle: None)
    shutil.rmtree = dying(shutil.rmtree)
    for name in ("replace", "rename", "mkdir", "unlink"):
        setattr(Path, name, dying(getattr(Path, name)))
    os._exit(main([*line, "--out", f"{folder}/{number}"]))

status, number = signal.SIGKILL, 0
while status == signal.SIGKILL:
    number += 1
    shutil.copytree(earlier, f"{folder}/{number}")
    process = os.fork() or child(number)
    _, status = os.waitpid(process, 0)
sys.exit(status)
"""
"""Runs a command over a copy of an earlier output, dying before change 1 of the disk, then over
another copy, dying before change 2, and so on until it lives. Forked, so that Python starts once.
"""

ROUNDING = {"method": "round", "calibration": None, "sequences": None, "length": None}


def test_a_death_before_any_change_of_the_disk_is_survived(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writing, syncing, renaming, replacing an earlier output, cleaning up: each of them."""
    model = write_checkpoint(tmp_path / "model", make_tensors(blocks=1))
    for name, bits in (("earlier", 4), ("calm", 3)):
        succeed(capsys, *quantize_line(model, tmp_path / name, bits=bits, **ROUNDING))
    earlier, calm = digest(tmp_path / "earlier"), digest(tmp_path / "calm")
    folder = tmp_path / "deaths"
    line = ["quantize", model, "--bits", 3, "--group-size", 32, "--method", "round"]
    line += ["--restart", "--no-pack"]
    finished = run_process(
        tmp_path / "earlier", folder, *line, program=DIES, OPENBLAS_NUM_THREADS="1"
    )
    assert finished.code == 0, finished.err
    deaths = len(list(folder.glob("*"))) - len(list(folder.glob("*.partial"))) - 1
    assert deaths > 2 * 8 + 15  # two changes for each of 8 matrices, and the rest of the way
    for number in range(1, deaths + 2):
        out = folder / str(number)
        assert not out.exists() or digest(out) in (earlier, calm), number
        succeed(capsys, *line, "--out", out)
        assert digest(out) == calm, number
        assert not out.with_name(f"{number}.partial").exists()


def test_an_interrupted_run_says_so_in_one_line_and_continues(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    succeed(capsys, *quantize_line(tiny, tmp_path / "calm", **SLOWLY))
    out = tmp_path / "stopped"
    line = quantize_line(tiny, out, **SLOWLY)
    process = start(*line)
    wait_for_tensors(process, out, 4)
    process.send_signal(signal.SIGINT)
    written, complaint = process.communicate()
    assert process.returncode == 130
    assert written == ""
    announced, said = complaint.splitlines()
    assert announced.startswith("needs about")
    assert said == "crumb: interrupted; the same command continues where it stopped"
    assert not out.exists()
    kept = len(finished_tensors(out))
    assert 4 <= kept < MATRICES
    solved: list[str] = []
    solve = quantize_run.solve_gptq

    def counting(problem: LayerProblem, *rest: Any) -> LayerSolution:
        solved.append(problem.name)
        return solve(problem, *rest)

    monkeypatch.setattr(quantize_run, "solve_gptq", counting)
    succeed(capsys, *line)
    assert digest(out) == digest(tmp_path / "calm")
    assert len(solved) == MATRICES - kept


@pytest.mark.oracle
def test_thirty_kills_of_a_trained_model_change_no_byte(tmp_path: Path) -> None:
    """Slow, hence among the oracle's tests; prints where the kills landed."""
    settings = {"group_size": 128, "sequences": 16, "length": 512}
    calm = run_process(*quantize_line(MODELS["novella-7m"], tmp_path / "calm", **settings))
    assert calm.code == 0, calm.err
    out = tmp_path / "killed"
    line = quantize_line(MODELS["novella-7m"], out, **settings)
    generator = random.Random(30)
    landed: list[int] = []
    for attempt in range(30):
        process = start(*line)
        # In steps up to the 52nd of 57 tensors, so that all land; then at any moment.
        wait_for_tensors(process, out, attempt * 54 // 30)
        time.sleep(generator.uniform(0.0, 0.2))
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            break
        landed.append(len(finished_tensors(out)))
    print(f"{len(landed)} kills landed before completion, at tensors {landed}")
    assert len(landed) >= 25
    finished = run_process(*line)
    assert finished.code == 0, finished.err
    assert digest(out) == digest(tmp_path / "calm")
