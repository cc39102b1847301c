"""The package's own front door, as Python users call it: crumb.quantize, load and evaluate.

In: the embedded model. Out: one arrow after the other, by keywords.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import crumb
from crumb.errors import UsageError
from crumb.solve.problem import Method, SolveSettings


def test_a_model_is_quantized_loaded_and_measured_by_keywords(tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = crumb.quantize(
        "novella-7m", bits=3, out=str(out), group_size=64, solve=SolveSettings(method=Method.ROUND)
    )
    assert result.out == out
    with crumb.load(out, context_tokens=64) as model:
        assert model.generate("The sea", max_tokens=4, ignore_end=True).completion_tokens == 4
    text = "excerpt-evaluation"
    measured = crumb.evaluate(str(out), text=text, window_tokens=64, limit_windows=2)
    assert measured.bits_per_weight == result.bits_per_weight


def test_a_setting_that_no_quantization_has_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="grup_size"):
        crumb.quantize("novella-7m", bits=3, out=tmp_path / "model", grup_size=64)


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = crumb.quantise  # type: ignore[attr-defined]
