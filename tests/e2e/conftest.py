"""What the end-to-end tests share: the embedded model at 3 bits, made once, and a tiny checkpoint.

In: nothing. Out: directories.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_checkpoint import write_checkpoint

from crumb.embedded import MODELS
from crumb.pipeline import Calibration, QuantizeRequest, quantize

NOVELLA = MODELS["novella-7m"]


@pytest.fixture(scope="session")
def quantized_novella(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """novella-7m at 3 bits in groups of 128."""
    out = tmp_path_factory.mktemp("novella") / "int3"
    calibration = Calibration("excerpt-calibration", sequences=4, length_tokens=128)
    quantize(QuantizeRequest(str(NOVELLA), out, bits=3, calibration=calibration))
    return out


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny checkpoint."""
    return write_checkpoint(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and waiting for the disk thousands of times takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
