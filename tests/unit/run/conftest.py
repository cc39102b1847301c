"""What the engine's tests share: a tiny checkpoint, quantized and as it was.

In: nothing. Out: directories, made once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoint import write_checkpoint

from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, Scales, SolveSettings


@pytest.fixture(scope="session")
def float_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in f16."""
    return write_checkpoint(tmp_path_factory.mktemp("float") / "tiny")


@pytest.fixture(scope="session")
def quantized_tiny(float_tiny: Path) -> Path:
    """The tiny checkpoint rounded to 3 bits, its embedding to 8."""
    out = float_tiny.with_name("int3")
    rounding = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    quantize(QuantizeRequest(str(float_tiny), out, bits=3, group_size=32, solve=rounding))
    return out
