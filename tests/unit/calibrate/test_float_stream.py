"""Asymmetric calibration: what corrections are, that they help texts held out, when there is none.

In: a tiny LLaMA, and the same with rounded first blocks as the quantized model; random texts.
Out: the corrections of each group against sums over whole texts, in f64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_tensors, write_checkpoint
from tiny_models import LLAMA, write_model

from crumb.calibrate.float_stream import DAMPING, HELD_OUT, Correction, FloatStream
from crumb.calibrate.walk import LinearGroup, StageWalk, walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.pipeline import quantize
from crumb.requests.quantize_options import make_quantize_request
from crumb.run.model import open_model

TEXTS, LENGTH = 8, 24


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """A float model, and itself with coarse weights."""
    folder = write_model(tmp_path_factory.mktemp("llama"), LLAMA)
    exact = open_model(str(folder)).checkpoint
    coarse = tmp_path_factory.mktemp("coarse") / "out"
    quantize(make_quantize_request(folder, coarse, bits=2, method="round", group_size="row"))
    return exact, open_model(str(coarse)).checkpoint


@pytest.fixture(scope="module")
def tokens() -> Any:
    return np.random.default_rng(5).integers(0, LLAMA["vocab_size"], (TEXTS, LENGTH))


def groups(
    models: tuple[Checkpoint, Checkpoint], tokens: Any
) -> Iterator[tuple[FloatStream, StageWalk, LinearGroup, StageWalk]]:
    """Each group of the coarse model, both streams where it is, and the float walk once more."""
    exact, coarse = models
    stream = FloatStream(exact, tokens)
    both = zip(walk_model(coarse, tokens), walk_model(exact, tokens), strict=True)
    for (walk, group), (again, _) in both:
        stream.advance()
        assert isinstance(group, LinearGroup)
        yield stream, walk, group, again


def held_out_error(
    weights: Any, change: Any, exact: Any, read: Any, counted: Any, held_out: bool = True
) -> float:
    """Weighted sum of (W x - (W + change) y)^2 over the texts that are held out, or the others."""
    rows = (np.arange(len(exact)) // LENGTH) % HELD_OUT == HELD_OUT - 1
    chosen = rows if held_out else ~rows
    lost = exact[chosen] @ weights.T - read[chosen] @ (weights + change).T
    return float((counted[chosen, None] * lost**2).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_a_correction_is_least_squares_and_its_share_the_best_for_texts_held_out(
    models: tuple[Checkpoint, Checkpoint], tokens: Any, weighted: bool
) -> None:
    random = np.random.default_rng(6)
    corrections = 0
    for stream, walk, group, again in groups(models, tokens):
        counted = random.random(tokens.size, np.float32) + 0.5 if weighted else None
        correction = stream.correction(walk, group, counted)
        x, y = (np.concatenate(each.inputs(group)).astype(np.float64) for each in (again, walk))
        w = np.ones(len(x)) if counted is None else counted.astype(np.float64)
        weights = np.concatenate([models[0].tensors.read_float(n.weight) for n in group.linears])
        if correction is None:
            continue
        corrections += 1
        second = (y * w[:, None]).T @ y
        damped = second + DAMPING * np.trace(second) / len(second) * np.eye(len(second))
        expected = ((x - y).T @ (y * w[:, None])) @ np.linalg.inv(damped)
        np.testing.assert_allclose(
            correction.matrix / correction.share, expected, atol=2e-3 * abs(expected).max()
        )
        check_share(weights, correction, x, y, w)
    assert corrections >= 4


def check_share(weights: Any, correction: Correction, x: Any, y: Any, w: Any) -> None:
    """The share is where the error of the texts held out is least, for what the others teach."""
    learned = (np.arange(len(x)) // LENGTH) % HELD_OUT != HELD_OUT - 1
    second = (y[learned] * w[learned, None]).T @ y[learned]
    damped = second + DAMPING * np.trace(second) / len(second) * np.eye(len(second))
    full = weights @ ((x - y)[learned].T @ (y * w[:, None])[learned] @ np.linalg.inv(damped))

    def error(share: float) -> float:
        return held_out_error(weights, share * full, x, y, w)

    share = correction.share
    assert 0.0 < share <= 1.0
    assert error(share) < error(0.0)
    for other in (share - 0.05, min(share + 0.05, 1.0)):
        assert error(share) <= error(other) * (1 + 1e-6)


def test_streams_that_are_alike_need_no_correction(
    models: tuple[Checkpoint, Checkpoint], tokens: Any
) -> None:
    for stream, walk, group, _ in groups((models[0], models[0]), tokens):
        assert stream.correction(walk, group, None) is None


def test_too_few_texts_hold_none_out(models: tuple[Checkpoint, Checkpoint], tokens: Any) -> None:
    for stream, walk, group, _ in groups(models, tokens[: HELD_OUT - 1]):
        assert stream.correction(walk, group, None) is None


def test_what_is_not_finite_is_left_to_the_statistics(
    models: tuple[Checkpoint, Checkpoint], tokens: Any
) -> None:
    stream, walk, group, _ = next(groups(models, tokens))
    walk.inputs(group)[0][0, 0] = np.nan
    assert stream.correction(walk, group, None) is None


def test_a_quantization_says_how_much_it_corrected(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", make_tensors(blocks=2))
    options: dict[str, Any] = {"sequences": 8, "length_tokens": 32, "bits": 2, "pack": False}
    options |= {"calibration": "excerpt-calibration", "group_size": 32}
    request = make_quantize_request(folder, tmp_path / "out", **options)
    records = quantize(request).manifest["tensors"]
    shares = {name: each["correction"] for name, each in records.items() if "correction" in each}
    assert shares
    assert all(0.0 < share <= 1.0 for share in shares.values())
    plain = replace(request.solve, asymmetric=False)
    other = quantize(replace(request, solve=plain, out=tmp_path / "plain"))
    assert "correction" not in str(other.manifest["tensors"])
    here, there = (open_model(str(tmp_path / name)).checkpoint.tensors for name in ("out", "plain"))
    assert any((here.read_float(name) != there.read_float(name)).any() for name in shares)


def test_corrected_weights_are_the_product_over_all_rows() -> None:
    random = np.random.default_rng(8)
    weights = random.standard_normal((600, 48)).astype(np.float32)
    matrix = random.standard_normal((48, 48)).astype(np.float32)
    expected = weights + weights.astype(np.float64) @ matrix
    np.testing.assert_allclose(Correction(matrix, 1.0).of(weights), expected, atol=1e-4)
