"""The native walk over windows: the same scores however many lanes, blocks and threads there are.

In: a tiny checkpoint. Out: scores, compared bit for bit; the array walk gives the same within f32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import NORM, make_tensors, write_checkpoint

from crumb.errors import CheckpointError
from crumb.evaluation import execution as execution_module
from crumb.evaluation.execution import Execution, ExecutorKind, block_tokens
from crumb.evaluation.scores import TokenScores, score
from crumb.kernels import threads
from crumb.run import lanes
from crumb.run.model import Model, open_model

FIELDS = ("loss", "divergence", "agrees", "probability_change")


@pytest.fixture
def models(tmp_path: Path) -> list[Model]:
    """Two different models."""
    return [
        open_model(str(write_checkpoint(tmp_path / str(seed), make_tensors(seed))))
        for seed in (0, 1)
    ]


@pytest.fixture
def windows() -> NDArray[np.int64]:
    """Five windows, of a length that no block divides."""
    return np.random.default_rng(0).integers(0, 256, (5, 75))


def assert_same_bits(found: list[TokenScores], expected: list[TokenScores]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("first_scored", [1, 2, 38, 74])
def test_both_executors_give_the_same_scores(
    first_scored: int, models: list[Model], windows: NDArray[np.int64]
) -> None:
    native = score(models, windows, first_scored, True)
    array = score(models, windows, first_scored, True, execution=Execution(ExecutorKind.ARRAY))
    for one, other in zip(native, array, strict=True):
        assert one.loss.shape == (5, 75 - first_scored)
        # Logits of a few units through 25 products of up to 96 terms: some 250 roundings of 2^-24.
        np.testing.assert_allclose(one.loss, other.loss, rtol=0, atol=5 * 250 * 2**-24)
        if other.divergence is not None:
            np.testing.assert_allclose(one.divergence, other.divergence, rtol=0, atol=1e-4)
            np.testing.assert_array_equal(one.agrees, other.agrees)


@pytest.mark.parametrize("first_scored", [1, 38])
def test_blocks_lanes_and_threads_change_no_bit(
    first_scored: int,
    models: list[Model],
    windows: NDArray[np.int64],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = score(models, windows, first_scored, True)
    for rows in (16, 31, 64):
        monkeypatch.setattr(execution_module, "MOST_BLOCK_TOKENS", rows)
        assert_same_bits(score(models, windows, first_scored, True), expected)
    for module, count in ((threads, 1), (threads, 3), (lanes, 1), (lanes, 4)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "processors", lambda count=count: count)
            assert_same_bits(score(models, windows, first_scored, True), expected)
    monkeypatch.setattr(lanes, "LANES_BYTES", 1)  # one lane, its engines with all threads
    assert_same_bits(score(models, windows, first_scored, True), expected)


def test_logits_stay_within_their_bound_whatever_the_vocabulary() -> None:
    assert block_tokens(4096, 2048) == 256
    assert block_tokens(4096, 100) == 100
    for vocabulary in (32_000, 128_256, 262_144):
        assert 4 * vocabulary * block_tokens(vocabulary, 2048) <= execution_module.BLOCK_BYTES
    assert block_tokens(10**8, 2048) == 16


def test_a_model_alone_has_the_losses_it_has_in_company(
    models: list[Model], windows: NDArray[np.int64]
) -> None:
    (alone,) = score(models[1:], windows, 1, False)
    assert alone.divergence is None
    np.testing.assert_array_equal(alone.loss, score(models, windows, 1, True)[1].loss)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_and_name_their_model(
    value: float, tmp_path: Path, models: list[Model], windows: NDArray[np.int64]
) -> None:
    tensors: dict[str, Any] = make_tensors()
    tensors[NORM] = tensors[NORM].copy()
    tensors[NORM][3] = value
    broken = open_model(str(write_checkpoint(tmp_path / "broken", tensors)))
    for execution in (Execution(), Execution(ExecutorKind.ARRAY)):
        with pytest.raises(CheckpointError, match="broken: the model's logits are not finite"):
            score([models[0], broken], windows, 1, True, execution=execution)
