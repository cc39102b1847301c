"""A stage on the native engine gives every buffer that the array executor gives, for every family.

In: the tiny models; two texts that flow through each stage, stopped before every operation in turn.
Out: live buffers of both, close by what f32 sums of their width may differ; the same bits however
the texts are batched, the stage is cut and many threads there are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import LENGTH_TOKENS, VARIANTS, make_tokens, write_model

from crumb.calibrate.walk import LinearGroup, linear_groups, walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.operations.operation import Context
from crumb.run.array_executor import run_span
from crumb.run.model import Model, start_buffers
from crumb.run.stage_engine import Buffers, StageEngine, plan_texts

UNIT = 2.0**-24


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint(variant: str, tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_model(tmp_path, VARIANTS[variant]))


def assert_close(native: NDArray[np.float32], exact: NDArray[np.float32], name: str) -> None:
    """One operation apart, of sums of at most a text's tokens or a few hundred features."""
    assert native.shape == exact.shape, name
    bound = 64 * math.sqrt(LENGTH_TOKENS) * UNIT * float(np.abs(exact).max())
    np.testing.assert_allclose(native, exact, rtol=0, atol=bound, err_msg=name)


def test_every_buffer_is_the_array_executors(checkpoint: Checkpoint, variant: str) -> None:
    tokens = make_tokens(VARIANTS[variant])
    texts, model = plan_texts(checkpoint, *tokens.shape), Model(checkpoint)
    flowing: dict[str, Any] = start_buffers(tokens)
    for index, stage in enumerate(checkpoint.plan.stages):
        context = Context(model.stage_weights(stage))
        exact, engine = dict(flowing), StageEngine(texts, index)
        batch: Buffers = {name: array for name, array in flowing.items() if name != "positions"}
        for place in range(len(stage.operations)):
            run_span(stage, place, place + 1, exact, context)
            engine.run_to(place + 1, [batch])
            assert exact.keys() - {"tokens", "positions"} == batch.keys() - {"tokens"}
            for name in exact.keys() - {"tokens", "positions"}:
                assert_close(batch[name], exact[name], f"{stage.operations[place]}: {name}")
                batch[name] = exact[name]  # what follows starts from the same
        flowing |= {name: exact[name] for name in stage.outputs}


def inputs(
    checkpoint: Checkpoint, tokens: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch, batch: int
) -> list[NDArray[np.float32]]:
    """What every group of linear layers reads, (texts, length, features)."""
    monkeypatch.setattr("crumb.calibrate.walk.BATCH_TOKENS", batch)
    return [
        np.concatenate([each[group.linears[0].input] for each in walk.flowing])
        for walk, group in walk_model(checkpoint, tokens)
    ]


def test_batches_and_threads_change_no_bit(
    checkpoint: Checkpoint, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = make_tokens(VARIANTS[variant])
    together = inputs(checkpoint, tokens, monkeypatch, tokens.size)
    groups: list[LinearGroup] = []
    for stage in checkpoint.plan.stages:
        groups += linear_groups(stage)
    assert len(together) == len(groups)
    monkeypatch.setattr("crumb.run.memory_plan.processors", lambda: 3)
    for one, other in zip(together, inputs(checkpoint, tokens, monkeypatch, 1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_walk_without_stops_gives_the_same_bits(checkpoint: Checkpoint, variant: str) -> None:
    """An activation and the product behind it are one pass here, and two above."""
    tokens = make_tokens(VARIANTS[variant])
    texts = plan_texts(checkpoint, *tokens.shape)
    whole: Buffers = {"tokens": tokens}
    pieces: Buffers = {"tokens": tokens}
    for index, stage in enumerate(checkpoint.plan.stages):
        StageEngine(texts, index).run_to(len(stage.operations), [whole])
        engine = StageEngine(texts, index)
        for end in range(len(stage.operations) + 1):
            engine.run_to(end, [pieces])
        assert whole.keys() == pieces.keys() == {"tokens", *stage.outputs}
        for name in stage.outputs:
            np.testing.assert_array_equal(whole[name], pieces[name])


def test_a_matrix_that_is_made_on_the_way_is_the_one_that_runs(tmp_path: Path) -> None:
    """The entries may change until the walk reaches them; those before it no longer count."""
    checkpoint = open_checkpoint(write_model(tmp_path, VARIANTS["llama"]))
    tokens = make_tokens(VARIANTS["llama"])
    entries = dict(checkpoint.tensors.entries)
    overlay = replace(checkpoint, tensors=replace(checkpoint.tensors, entries=entries))
    batch: Buffers = {"tokens": tokens}
    texts = plan_texts(overlay, *tokens.shape)
    StageEngine(texts, 0).run_to(1, [batch])
    stage = checkpoint.plan.stages[1]
    first, second, *_ = linear_groups(stage)
    original, changed = dict(batch), dict(batch)
    StageEngine(texts, 1).run_to(second.first, [original])
    engine = StageEngine(texts, 1)
    engine.run_to(first.first, [changed])
    _, key, value = first.linears
    entries[value.weight] = entries[key.weight]  # of the same shape
    engine.run_to(second.first, [changed])
    name = second.linears[0].input
    assert np.abs(changed[name] - original[name]).max() > 0
    engine = StageEngine(texts, 1)
    expected = dict(batch)
    engine.run_to(second.first, [expected])
    np.testing.assert_array_equal(changed[name], expected[name])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_next_linear_layer(value: float, tmp_path: Path) -> None:
    """Its statistics refuse it by name."""
    checkpoint = open_checkpoint(write_model(tmp_path, VARIANTS["llama"]))
    tokens = make_tokens(VARIANTS["llama"])
    texts = plan_texts(checkpoint, *tokens.shape)
    batch: Buffers = {"tokens": tokens}
    StageEngine(texts, 0).run_to(1, [batch])
    batch["hidden"][1, 3, 7] = value
    engine = StageEngine(texts, 1)
    for group in linear_groups(engine.stage):
        engine.run_to(group.first, [batch])
        rows = batch[group.linears[0].input]
        assert not np.isfinite(rows[1, 3]).all()
        assert np.isfinite(rows[0]).all()  # the other text
