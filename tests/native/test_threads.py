"""How many threads: the processors this process may use, and no more than its control group pays.

In: a limit file as the kernel writes it. Out: processors.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crumb.kernels import threads


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("max 100000\n", 8),
        ("250000 100000\n", 3),
        ("50000 100000\n", 1),
        ("9000000 100000\n", 8),
        ("nonsense\n", 8),
    ],
)
def test_a_control_group_limits_the_threads(
    written: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(written)
    monkeypatch.setattr(threads, "CPU_LIMIT", limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert threads.processors() == expected


def test_without_a_control_group_every_allowed_processor_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "CPU_LIMIT", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5})
    assert threads.processors() == 2
