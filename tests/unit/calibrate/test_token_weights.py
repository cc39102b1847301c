"""Weights of calibration tokens: the gradients behind them, resuming after a kill, the arithmetic.

In: the tiny models of every family, random tokens. Out: the squares of one backward pass over whole
texts, computed at once by run/backward.py, against the pass that walks a stage at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exhaustive import EACH_FAMILY
from tiny_models import LLAMA, VARIANTS, make_tokens, write_model

from crumb.calibrate import token_weights
from crumb.calibrate.statistics import accumulate, effective_tokens
from crumb.calibrate.token_weights import GradientPass, TokenWeights
from crumb.operations.embed import Embed
from crumb.operations.experts import Experts
from crumb.operations.headlinear import HeadLinear
from crumb.operations.linear import Linear
from crumb.requests.quantize_options import make_quantize_request
from crumb.run import whole_texts
from crumb.run.backward import Backward, next_token_loss
from crumb.run.model import open_model


def linear(weight: str, outputs: int) -> Linear:
    return Linear("x", "y", weight, None, 4, outputs)


def squares_at_once(folder: Path, tokens: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    squares: dict[str, Any] = {}
    features: dict[str, Any] = {}

    def visit(operation: Any, _: Any, gradients: Any) -> None:
        if isinstance(operation, Linear | HeadLinear | Experts):
            name = operation.down if isinstance(operation, Experts) else operation.weight
            squares[name] = (gradients[0] ** 2).mean(-1).ravel()
        elif isinstance(operation, Embed):
            features[operation.weight] = (gradients[0] ** 2).mean((0, 1))

    backward = Backward(open_model(str(folder)), tokens, visit=visit)
    logits = backward.logits()
    backward.gradients(next_token_loss(logits, tokens)[1] * tokens[:, 1:].size)
    return squares, features


@pytest.mark.parametrize("variant", EACH_FAMILY)
def test_the_pass_gives_the_squares_of_a_pass_at_once(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = dict(VARIANTS[variant])
    folder = write_model(tmp_path, configuration)
    tokens = np.concatenate([make_tokens(configuration)] * 2)[:3, :20]
    tokens[1] = tokens[1][::-1]
    monkeypatch.setattr(whole_texts, "BATCH_TOKENS", 40)  # two texts, then one
    monkeypatch.setattr(token_weights, "HEAD_TOKENS", 7)
    checkpoint = open_model(str(folder)).checkpoint
    found = GradientPass(checkpoint, tokens, tmp_path / "pass").run(1.0)
    squares, features = squares_at_once(folder, tokens)
    assert set(found.squares) == set(squares)
    assert set(found.features) == set(features) != set()
    for name, values in squares.items():
        np.testing.assert_allclose(found.squares[name], values, rtol=2e-3, atol=1e-6 * values.max())
    for name, values in features.items():
        np.testing.assert_allclose(found.features[name], values, rtol=2e-3)


def test_a_killed_pass_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_model(str(write_model(tmp_path, LLAMA))).checkpoint
    tokens = make_tokens(LLAMA)
    whole = GradientPass(checkpoint, tokens, tmp_path / "whole").run(1.0).squares
    steps: list[str] = []
    for word in ("_write", "_back"):
        original = getattr(GradientPass, word)

        def limited(self: Any, *words: Any, original: Any = original, word: str = word) -> Any:
            steps.append(word)
            if len(steps) == 3:  # a stage further than the run before, then killed
                raise KeyboardInterrupt
            return original(self, *words)

        monkeypatch.setattr(GradientPass, word, limited)
    kills, result = 0, None
    while result is None:
        steps.clear()
        try:
            result = GradientPass(checkpoint, tokens, tmp_path / "killed").run(1.0).squares
        except KeyboardInterrupt:
            kills += 1
    assert kills > 2
    for name, values in whole.items():
        np.testing.assert_array_equal(result[name], values)


def test_weights_have_mean_one_and_layers_count_by_their_outputs() -> None:
    squares = {"a": np.array([1.0, 2, 3, 4], np.float32), "b": np.array([4.0, 4, 4, 4], np.float32)}
    weights = TokenWeights(squares, 1.0).of([linear("a", 1), linear("b", 3)])
    assert weights.mean() == pytest.approx(1.0)
    together = np.array([1.0, 2, 3, 4]) / 4 + 3.0
    top = np.quantile(together, token_weights.CLIP_QUANTILE)
    expected = np.minimum(together, top)
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-6)


def test_a_power_below_one_brings_weights_nearer_to_each_other() -> None:
    squares = {"a": np.array([1.0, 4, 9, 16], np.float32)}
    weights = TokenWeights(squares, 0.5).of([linear("a", 2)])
    assert weights[1] / weights[0] == pytest.approx(2.0)


def test_a_layer_that_the_loss_never_reads_counts_all_tokens_alike() -> None:
    weights = TokenWeights({"a": np.zeros(5, np.float32)}, 0.5).of([linear("a", 2)])
    np.testing.assert_array_equal(weights, np.ones(5))


def test_weighted_statistics_count_each_token_by_its_weight() -> None:
    random = np.random.default_rng(0)
    batches = [random.standard_normal((2, 5, 7)).astype(np.float32) for _ in range(2)]
    weights = random.uniform(0.1, 3, 20).astype(np.float32)
    statistics = accumulate(batches, "layer", weights)
    rows = np.concatenate([batch.reshape(-1, 7) for batch in batches]).astype(np.float64)
    expected = np.einsum("t,ti,tj->ij", weights.astype(np.float64), rows, rows) / 20
    np.testing.assert_allclose(statistics.hessian, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(statistics.hessian, statistics.hessian.T)
    assert statistics.tokens == effective_tokens(weights) < 20


def test_effort_decides_whether_tokens_are_weighed(tmp_path: Path) -> None:
    fast = make_quantize_request("m", tmp_path, bits=4, effort="fast")
    default = make_quantize_request("m", tmp_path, bits=4)
    assert default.settings.weighs_tokens
    assert not fast.settings.weighs_tokens
    assert "token_power" in default.key()["solve"]
    assert "token_power" not in fast.key()["solve"]
