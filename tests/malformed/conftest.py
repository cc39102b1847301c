"""What the tests of broken inputs share: a checkpoint to break, and a look at what is left behind.

In: nothing. Out: a tiny directory; a command that must refuse it and leave nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import digest, quantize_line, refusal
from tiny_checkpoint import write_checkpoint

Refused = Callable[..., str]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny checkpoint."""
    return write_checkpoint(tmp_path / "tiny")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(code, model, **options) -> the one line of a quantization that leaves no trace."""

    def check(code: int, model: Path, **options: object) -> str:
        before = digest(tmp_path)
        line = refusal(capsys, code, *quantize_line(model, tmp_path / "out", **options))
        assert digest(tmp_path) == before
        assert not list(tmp_path.glob("out*"))
        return line

    return check


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and waiting for the disk thousands of times takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
