"""The backward pass of whole models against differences, for every family.

In: the tiny models, their weights in f64. Out: slopes of the loss along random directions of every
tensor, an encoder's among them, and of what a caller of `visit` sees.
The oracle tests compare with PyTorch's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exhaustive import EACH_FAMILY, exhaustive
from tiny_models import ENCODER_DECODERS, EVERY, LLAMA, make_sources, make_tokens, write_model

from crumb.errors import UsageError
from crumb.operations.linear import Linear
from crumb.run.backward import Backward, next_token_loss
from crumb.run.model import Model, open_model

STEP = 1e-6


def model_in_f64(folder: Path, configuration: dict[str, Any]) -> Model:
    model = open_model(str(write_model(folder, configuration)))
    for stage in model.plan.stages:
        for name, array in model.stage_weights(stage).items():
            model._kept[name] = np.asarray(array, np.float64)
    return model


def sources_of(variant: str) -> dict[str, Any]:
    """What the model reads beside its tokens, and not as many."""
    return {"source": make_sources(EVERY[variant])[:, :9]} if variant in ENCODER_DECODERS else {}


def loss_of(model: Model, tokens: Any, inputs: dict[str, Any]) -> float:
    return next_token_loss(Backward(model, tokens, inputs=inputs).logits(), tokens)[0]


def without_expert_numbers(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in the number of an expert alone are one list: one slope for them all."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"experts\.\d+", "experts", name), []).append(name)
    return list(alike.values())


ENCODERS = [*list(ENCODER_DECODERS)[:2], *exhaustive(*list(ENCODER_DECODERS)[2:])]


@pytest.mark.parametrize("variant", [*EACH_FAMILY, *ENCODERS])
def test_gradients_of_all_tensors_are_slopes_of_the_loss(variant: str, tmp_path: Path) -> None:
    model, inputs = model_in_f64(tmp_path, dict(EVERY[variant])), sources_of(variant)
    tokens = make_tokens(EVERY[variant])[:, :12]
    names = tuple(spec.name for spec in model.plan.tensors())
    backward = Backward(model, tokens, trained=names, inputs=inputs)
    logits = backward.logits()
    loss, toward = next_token_loss(logits, tokens)
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    hits = np.take_along_axis(shares[:, :-1], tokens[:, 1:, None], axis=-1)
    assert loss == pytest.approx(-np.log(hits).mean(), rel=1e-12)
    gradients = backward.gradients(toward)
    assert set(gradients) == set(names)
    random = np.random.default_rng(3)
    for alike in without_expert_numbers(names):
        along = {name: random.standard_normal(model._kept[name].shape) for name in alike}
        weights = {name: model._kept[name] for name in alike}
        losses = []
        for sign in (1, -1):
            moved = {name: weights[name] + sign * STEP * along[name] for name in alike}
            model._kept.update(moved)
            losses.append(loss_of(model, tokens, inputs))
        model._kept.update(weights)
        slope = (losses[0] - losses[1]) / (2 * STEP)
        parts = [gradients[name] * along[name] for name in alike]
        size = sum(float(np.abs(part).sum()) for part in parts)
        # Rotary tables and erf are f32 or of 2e-7; a larger STEP would cross the bends of relu.
        assert abs(slope - sum(float(part.sum()) for part in parts)) < 1e-5 * size + 1e-8, alike


def test_a_visitor_sees_every_linear_once_with_the_gradient_of_its_output(tmp_path: Path) -> None:
    model = model_in_f64(tmp_path, LLAMA)
    tokens = make_tokens(LLAMA)[:, :9]
    shapes: dict[str, tuple[int, ...]] = {}

    def visit(operation: Any, reads: Any, gradients: Any) -> None:
        if isinstance(operation, Linear):
            assert operation.weight not in shapes
            assert reads[0].shape == (*tokens.shape, operation.in_features)
            shapes[operation.weight] = gradients[0].shape

    backward = Backward(model, tokens, visit=visit)
    assert backward.gradients(next_token_loss(backward.logits(), tokens)[1]) == {}
    expected = {op.weight: (*tokens.shape, op.out_features) for op in model.plan.linears()}
    assert shapes == expected


def test_tokens_that_no_model_takes_are_refused(tmp_path: Path) -> None:
    model = open_model(str(write_model(tmp_path, LLAMA)))
    with pytest.raises(UsageError, match="vocabulary"):
        Backward(model, np.asarray([[1, 4000]])).logits()


def test_a_model_that_reads_a_source_is_refused_without_one(tmp_path: Path) -> None:
    model = open_model(str(write_model(tmp_path, ENCODER_DECODERS["t5"])))
    with pytest.raises(UsageError, match="beside the tokens"):
        Backward(model, np.asarray([[0, 4]])).logits()
