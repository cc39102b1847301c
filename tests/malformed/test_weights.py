"""Weights that are not finite or too large for any format, wherever in the model they lie.

In: checkpoints with one bad number. Out: one line that names tensor, row and column; a run never
goes on with it, and evaluation never reports a figure made of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import crumb, eval_line, finished_tensors, quantize_line, refusal
from tiny_checkpoint import DOWN, EMBEDDING, HEAD, NORM, QUERY, make_tensors, write_checkpoint

Capsys = pytest.CaptureFixture[str]

PLACES: dict[str, tuple[int, ...]] = {
    EMBEDDING: (299, 63),
    QUERY: (5, 17),
    DOWN: (63, 0),
    HEAD: (0, 2),
    NORM: (9,),
    "model.norm.weight": (63,),
}


def broken(folder: Path, name: str, value: float, dtype: str = "F16") -> Path:
    """An untied checkpoint with one bad number at the tensor's place."""
    tensors = make_tensors(tied=False)
    tensors[name][PLACES[name]] = value
    return write_checkpoint(folder / "broken", tensors, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "value", "method"),
    [
        *[(name, np.nan, "gptq") for name in PLACES],
        *[(name, np.nan, "round") for name in PLACES],
        *[(name, np.inf, "gptq") for name in (NORM, QUERY)],
        (QUERY, -np.inf, "round"),
    ],
)
def test_a_number_that_is_not_finite_is_named_by_place(
    name: str, value: float, method: str, tmp_path: Path, capsys: Capsys
) -> None:
    model, out = broken(tmp_path, name, value), tmp_path / "out"
    line = refusal(capsys, 1, *quantize_line(model, out, method=method))
    place = ", ".join(str(index) for index in PLACES[name])
    assert f"{name}[{place}]" in line
    assert f"found {value}" in line
    assert not out.exists()
    comes_first = name == EMBEDDING or "norm" in name  # before any tensor is finished
    assert bool(finished_tensors(out)) != comes_first
    assert (tmp_path / "out.partial").exists() != comes_first


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_other_float_types_are_checked_too(dtype: str, tmp_path: Path, refused: Any) -> None:
    line = refused(1, broken(tmp_path, NORM, np.nan, dtype))
    assert f"{NORM}[9]" in line


def test_weights_that_no_fp16_scale_reaches_are_refused(tmp_path: Path, capsys: Capsys) -> None:
    model = broken(tmp_path, QUERY, 3e38, "F32")
    line = refusal(capsys, 1, *quantize_line(model, tmp_path / "out"))
    assert "fp16" in line
    assert "found 3.0000000" in line
    assert QUERY in line


def test_inputs_that_overflow_during_calibration_are_refused(
    tmp_path: Path, capsys: Capsys
) -> None:
    """Every weight is finite here; what flows between the layers is not."""
    tensors = make_tensors()
    tensors[NORM][:] = 3e38
    model = write_checkpoint(tmp_path / "model", tensors, dtype="F32")
    line = refusal(capsys, 1, *quantize_line(model, tmp_path / "out"))
    assert "calibration inputs of this layer are not finite" in line
    assert "model.layers.1." in line


def test_a_calibration_that_overflows_says_so_under_round_only_when_it_runs(
    tmp_path: Path, capsys: Capsys
) -> None:
    """Rounding runs no text through the model, so only evaluation can notice."""
    tensors = make_tensors()
    tensors[NORM][:] = 3e38
    model, out = write_checkpoint(tmp_path / "model", tensors, dtype="F32"), tmp_path / "out"
    assert crumb(capsys, *quantize_line(model, out, method="round")).code == 0
    assert "logits are not finite" in refusal(capsys, 1, *eval_line(out))


@pytest.mark.parametrize("name", PLACES)
def test_evaluation_refuses_figures_made_of_nan(name: str, tmp_path: Path, capsys: Capsys) -> None:
    tensors = make_tensors(tied=False)
    tensors[name][PLACES[name]] = np.nan
    tensors[EMBEDDING][ord("e")] += tensors[EMBEDDING][-1]  # the text has no token 299
    model = write_checkpoint(tmp_path / "broken", tensors)
    line = refusal(capsys, 1, *eval_line(model))
    assert "logits are not finite" in line
    assert str(model) in line


def test_a_gate_does_not_pass_a_model_that_cannot_be_measured(
    tmp_path: Path, capsys: Capsys
) -> None:
    model = broken(tmp_path, QUERY, np.nan)
    refusal(capsys, 1, *eval_line(model, "--fail-if", "perplexity > 1e9"))
