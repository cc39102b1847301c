"""Weights of calibration tokens: the gradients behind them, resuming after a kill, the arithmetic.

In: the tiny models of every family, random tokens; pairs for those that read a source. Out: the
squares of one backward pass over whole texts, computed at once by run/backward.py, against the pass
that walks a stage at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exhaustive import EACH_FAMILY
from tiny_models import (
    ENCODER_DECODERS,
    LLAMA,
    VARIANTS,
    make_sources,
    make_tokens,
    write_model,
)

from crumb.calibrate import token_weights
from crumb.calibrate.borders import Borders, cut_parts
from crumb.calibrate.statistics import accumulate, effective_tokens
from crumb.calibrate.token_weights import GradientPass, TokenWeights, loss_gradient
from crumb.operations.embed import Embed
from crumb.operations.experts import Experts
from crumb.operations.headlinear import HeadLinear
from crumb.operations.linear import Linear
from crumb.requests.quantize_options import make_quantize_request
from crumb.run import whole_texts
from crumb.run.backward import Backward
from crumb.run.model import open_model
from crumb.texts.pairs import PairRows, PairTokens


def linear(weight: str, outputs: int) -> Linear:
    return Linear("x", "y", weight, None, 4, outputs)


Squares = dict[str, Any]


def squares_at_once(
    folder: Path, tokens: Any, inputs: dict[str, Any], toward: Any
) -> tuple[Squares, Squares]:
    """Of each layer by token; of each table's outputs by feature, (tokens, features)."""
    squares: Squares = {}
    features: Squares = {}

    def visit(operation: Any, _: Any, gradients: Any) -> None:
        if isinstance(operation, Linear | HeadLinear | Experts):
            name = operation.down if isinstance(operation, Experts) else operation.weight
            squares[name] = (gradients[0] ** 2).mean(-1).ravel()
        elif isinstance(operation, Embed):
            rows = (gradients[0] ** 2).reshape(-1, operation.features)
            others = features.get(operation.weight, rows[:0])
            features[operation.weight] = np.concatenate([others, rows])

    backward = Backward(open_model(str(folder)), tokens, visit=visit, inputs=inputs)
    backward.gradients(toward(backward.logits()))
    return squares, features


def check_equal(found: TokenWeights, squares: Squares, features: Squares) -> None:
    assert set(found.squares) == set(squares)
    assert set(found.features) == set(features) != set()
    for name, values in squares.items():
        np.testing.assert_allclose(found.squares[name], values, rtol=2e-3, atol=1e-6 * values.max())
    for name, values in features.items():
        np.testing.assert_allclose(found.features[name], values.mean(0), rtol=2e-3)


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
    draws = np.concatenate([part.draws for part in cut_parts(tokens)])

    def toward(logits: Any) -> Any:
        return loss_gradient(logits, draws)

    check_equal(found, *squares_at_once(folder, tokens, {}, toward))


def pairs(configuration: dict[str, Any]) -> PairTokens:
    """Five pairs of one shape, two of another."""
    sources, tokens = make_sources(configuration), make_tokens(configuration)
    first = np.concatenate([sources.ravel()[:85].reshape(5, 17), tokens[:, :35].reshape(5, 14)], 1)
    second = np.concatenate([sources[:, :9], tokens[:, 40:71]], axis=1)
    return PairTokens((PairRows(first, 17), PairRows(second, 9)))


@pytest.mark.parametrize("variant", ENCODER_DECODERS)
def test_the_pass_over_pairs_goes_through_both_halves(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = ENCODER_DECODERS[variant]
    folder, tokens = write_model(tmp_path, configuration), pairs(configuration)
    monkeypatch.setattr(whole_texts, "BATCH_TOKENS", 40)
    monkeypatch.setattr(token_weights, "HEAD_TOKENS", 7)
    checkpoint = open_model(str(folder)).checkpoint
    found = GradientPass(checkpoint, tokens, tmp_path / "pass").run(1.0)
    squares: Squares = {}
    features: Squares = {}
    all_draws = np.concatenate([part.draws.ravel() for part in cut_parts(tokens)])
    begin = 0
    for rows in tokens.groups:
        draws = all_draws[begin : begin + rows.inputs.size].reshape(rows.inputs.shape)
        begin += rows.inputs.size

        def toward(logits: Any, draws: Any = draws) -> Any:
            return loss_gradient(logits, draws)

        some = squares_at_once(folder, rows.inputs, {"source": rows.sources}, toward)
        for total, one in zip((squares, features), some, strict=True):
            for name, values in one.items():
                total[name] = np.concatenate([*([total[name]] if name in total else []), values])
    check_equal(found, squares, features)
    read, written = 5 * 17 + 2 * 9, 5 * 13 + 2 * 30
    lengths = {name: len(values) for name, values in found.squares.items()}
    assert set(lengths.values()) == {read, written}
    assert lengths["encoder.block.0.layer.0.SelfAttention.q.weight"] == read
    assert lengths["decoder.block.0.layer.1.EncDecAttention.k.weight"] == read
    assert lengths["decoder.block.0.layer.1.EncDecAttention.q.weight"] == written
    left = {path.name.split(".", 1)[1] for path in (tmp_path / "pass").iterdir()}
    assert left == {"squares.npy", "features.npy"}


@pytest.mark.parametrize("reads", [False, True])
def test_a_killed_pass_goes_on_where_it_was(
    reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = ENCODER_DECODERS["t5"] if reads else LLAMA
    checkpoint = open_model(str(write_model(tmp_path, configuration))).checkpoint
    tokens = pairs(configuration) if reads else make_tokens(configuration)
    whole = GradientPass(checkpoint, tokens, tmp_path / "whole").run(1.0).squares
    steps: list[str] = []
    for room, word in ((Borders, "_write"), (GradientPass, "_back")):
        original = getattr(room, word)

        def limited(self: Any, *words: Any, original: Any = original, word: str = word) -> Any:
            steps.append(word)
            if len(steps) == 3:  # a stage further than the run before, then killed
                raise KeyboardInterrupt
            return original(self, *words)

        monkeypatch.setattr(room, word, limited)
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


def test_next_tokens_come_as_often_as_the_model_says() -> None:
    logits = np.log(np.array([[[0.1, 0.6, 0.0001, 0.2999]]], np.float32)).repeat(4000, axis=1)
    draws = np.random.default_rng(3).random((1, 4000), np.float32)
    gradient = loss_gradient(logits, draws)[0]
    np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-6)
    frequencies = (gradient < 0).mean(0)
    np.testing.assert_allclose(frequencies, [0.1, 0.6, 0.0001, 0.2999], atol=0.03)


@pytest.mark.parametrize("draw", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_a_draw_at_an_end_is_a_token_of_the_vocabulary(draw: float) -> None:
    gradient = loss_gradient(np.zeros((1, 1, 5), np.float32), np.full((1, 1), draw, np.float32))
    assert (gradient < 0).sum() == 1


def test_a_texts_draws_do_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.arange(60).reshape(6, 10)
    whole = np.concatenate([part.draws for part in cut_parts(tokens)])
    monkeypatch.setattr(whole_texts, "BATCH_TOKENS", 20)
    np.testing.assert_array_equal(np.concatenate([part.draws for part in cut_parts(tokens)]), whole)


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
