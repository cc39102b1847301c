"""H of an embedding: the variance of the logits it moves, and as a head what a linear layer has.

In: tiny checkpoints, tied and not. Out: the matrix, against variances and moments written out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import EMBEDDING, HEAD, make_tensors, write_checkpoint

from crumb.calibrate import embedding
from crumb.calibrate.embedding import ANY_DIRECTION, UNSEEN, embedding_statistics
from crumb.errors import SolveError
from crumb.operations.operation import Context
from crumb.run.array_executor import run_span
from crumb.run.model import Model, open_model, start_buffers

Floats = NDArray[np.float64]
UNIT = 2.0**-24
TOKENS = np.random.default_rng(0).integers(0, 40, (3, 50)) ** 2 % 256
"""Some tokens are frequent, most never come."""


def opened(folder: Path, tied: bool, **odd: Any) -> Model:
    return open_model(str(write_checkpoint(folder / "model", make_tensors(tied=tied) | odd)))


def statistics_of(model: Model) -> Floats:
    spec = model.plan.stages[0].operations[0].tensors()[0]
    assert spec.name == EMBEDDING
    found = embedding_statistics(model.checkpoint, spec, TOKENS)
    assert found is not None
    assert found.tokens == TOKENS.size
    return found.hessian


def exact_curvature(model: Model, head: str) -> Floats:
    """C with unit mean diagonal, one direction after the other in f64."""
    weights = model.checkpoint.tensors.read_float(head).astype(np.float64)
    gain = model.checkpoint.tensors.read_float("model.norm.weight").astype(np.float64)
    share = np.bincount(TOKENS.ravel(), minlength=len(weights)) + UNSEEN
    moved = weights * gain  # of each logit, for a step along each feature
    curvature = np.cov(moved, rowvar=False, aweights=share, bias=True)
    scaled: Floats = curvature / curvature.diagonal().mean()
    return scaled


def head_moment(model: Model) -> Floats:
    """The second moment of the head's input, with unit mean diagonal, in one pass."""
    flowing: dict[str, Any] = start_buffers(TOKENS)
    for stage in model.plan.stages:
        buffers = {name: flowing[name] for name in stage.inputs}
        stop = len(stage.operations) - (stage is model.plan.stages[-1])
        run_span(stage, 0, stop, buffers, Context(model.stage_weights(stage)))
        flowing |= buffers
    rows = flowing[list(model.plan.linears())[-1].input].reshape(-1, 64).astype(np.float64)
    moment = rows.T @ rows
    return moment / moment.diagonal().mean()


def test_an_error_costs_the_variance_of_the_logits_it_moves(tmp_path: Path) -> None:
    model = opened(tmp_path, tied=False)
    found = statistics_of(model) - ANY_DIRECTION * np.eye(64)
    # Sums of 300 products in f32, of magnitudes near their root mean squares.
    np.testing.assert_allclose(found, exact_curvature(model, HEAD), rtol=0, atol=300 * UNIT)


def test_a_tied_matrix_also_costs_what_a_head_does(tmp_path: Path) -> None:
    model = opened(tmp_path, tied=True)
    found = statistics_of(model) - ANY_DIRECTION * np.eye(64)
    exact = exact_curvature(model, EMBEDDING) + head_moment(model)
    # The model's own f32 activations in batches of another shape: some roundings of the largest.
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * exact.max())


def test_rows_of_the_head_read_apart_make_the_same_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(tmp_path, tied=False)
    together = statistics_of(model)
    monkeypatch.setattr(embedding, "ROWS_AT_ONCE", 64)
    np.testing.assert_allclose(statistics_of(model), together, rtol=0, atol=300 * UNIT)


def test_an_embedding_of_another_width_than_the_heads_has_none(tmp_path: Path) -> None:
    model = opened(tmp_path, tied=False)
    spec = replace(model.plan.stages[0].operations[0].tensors()[0], shape=(300, 32))
    assert embedding_statistics(model.checkpoint, spec, TOKENS) is None


def test_a_head_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    broken = make_tensors(tied=False)[HEAD]
    broken[7, 9] = np.nan
    with pytest.raises(SolveError, match=r"lm_head\.weight"):
        statistics_of(opened(tmp_path, tied=False, **{HEAD: broken}))
