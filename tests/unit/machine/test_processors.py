"""How many processors: those this process may use, and no more than its control group pays."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from crumb.machine import processors as module
from crumb.machine.processors import processor_features, processor_name, processors


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """An os module of an older Python or another system."""
    for name in names:
        monkeypatch.delattr(os, name, raising=False)


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (2.5, 3), (0.5, 1), (90.0, 8), (0.0, 1)]
)
def test_a_quota_limits_the_processors_to_its_next_whole_number(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "process_cpu_count")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(module, "processor_quota", lambda: quota)
    assert processors() == expected


def test_the_newest_answer_that_this_python_has_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processor_quota", lambda: None)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert processors() == 3
    without(monkeypatch, "process_cpu_count")
    assert processors() == 2
    without(monkeypatch, "sched_getaffinity")  # macOS before Python 3.13
    assert processors() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors() == 1


def test_the_first_processor_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "CPUINFO", cpuinfo)
    assert processor_name() == platform.machine()
    assert processor_features() == frozenset()
    cpuinfo.write_text("model name : Some CPU\nflags : fpu avx2\n\nmodel name : B\nflags : x\n")
    assert processor_name() == "Some CPU"
    assert processor_features() == {"fpu", "avx2"}
