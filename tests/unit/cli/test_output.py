"""How numbers and tables are written for people, and when progress is told.

In: counts of bytes, seconds, rows. Out: text.
"""

from __future__ import annotations

import json

import pytest

from crumb.cli import output
from crumb.cli.output import bytes_text, duration_text, print_json, print_table, progress_bar
from crumb.progress import ProgressClock
from crumb.solve.problem import Method

Capsys = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (68256, "68.26 kB"),
        (3_549_176, "3.55 MB"),
        (14_696_720_000, "14.70 GB"),
        (7e15, "7000000.00 GB"),
    ],
)
def test_bytes_are_written_in_powers_of_1000(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.001, "1 s"),
        (5.4, "5 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5000, "83 min"),
        (9000, "2.5 h"),
    ],
)
def test_seconds_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_table_in_a_pipe_is_wide_plain_and_complete(capsys: Capsys) -> None:
    print_table(["<name", "count"], [["a" * 100, "7"], ["b", "1234567"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a" * 100 in out
    lines = [line.rstrip() for line in out.splitlines() if line.strip()]
    assert lines[-1].endswith("1234567")
    assert lines[-2].endswith("      7")


def test_json_spells_paths_and_enumerations_as_text(capsys: Capsys, tmp_path: object) -> None:
    print_json({"path": tmp_path, "method": Method.GPTQ, "odd": "\udcff"})
    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path),
        "method": "gptq",
        "odd": "\udcff",
    }


def test_without_a_terminal_progress_is_a_rare_line(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    with progress_bar() as bar:
        clock = ProgressClock(bar)
        for step in range(1, 101):
            now[0] = float(step)
            clock(step / 100, f"step {step}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 100 / output.LINE_SECONDS
    assert lines[1] == " 20 %  step 20  about 80 s remain"
