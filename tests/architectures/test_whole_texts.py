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
from exhaustive import EACH_FAMILY
from numpy.typing import NDArray
from tiny_models import LENGTH_TOKENS, VARIANTS, make_tokens, write_model

from crumb.calibrate.walk import StageWalk, layer_groups, walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.operations.operation import Context
from crumb.run.array_executor import run_span
from crumb.run.model import Model, start_buffers
from crumb.run.whole_texts import Batch, plan_texts

UNIT = 2.0**-24


@pytest.fixture(params=EACH_FAMILY)
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
    texts, model = plan_texts(checkpoint, [Batch(tokens)]), Model(checkpoint)
    flowing: dict[str, Any] = start_buffers(tokens)
    batch = Batch(tokens)
    for index, stage in enumerate(checkpoint.plan.stages):
        context = Context(model.stage_weights(stage))
        for place in range(len(stage.operations)):
            run_span(stage, place, place + 1, flowing, context)
            flowing |= {"tokens": tokens, "positions": start_buffers(tokens)["positions"]}
            texts.run(index, place, place + 1, [batch])
            assert flowing.keys() - {"tokens", "positions"} == batch.buffers.keys()
            for name in batch.buffers:
                exact = flowing[name].reshape(tokens.size, -1)
                native = batch.features(name, exact.shape[1])
                assert_close(native, exact, f"{stage.operations[place]}: {name}")
                native[:] = exact  # what follows starts from the same


def inputs(
    checkpoint: Checkpoint, tokens: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch, batch: int
) -> list[NDArray[np.float32]]:
    """What every group of linear layers reads, (rows, features)."""
    monkeypatch.setattr("crumb.run.whole_texts.BATCH_TOKENS", batch)
    walked = walk_model(checkpoint, tokens)
    return [np.concatenate(walk.inputs(group)) for walk, group in walked]


def test_batches_lanes_and_threads_change_no_bit(
    checkpoint: Checkpoint, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.concatenate([make_tokens(VARIANTS[variant]), make_tokens(VARIANTS[variant])[:1]])
    together = inputs(checkpoint, tokens, monkeypatch, tokens.size)
    assert len(together) == sum(len(layer_groups(stage)) for stage in checkpoint.plan.stages)
    for processors, batch in ((1, 1), (3, 1), (3, tokens.size), (5, 2 * tokens.shape[1])):
        monkeypatch.setattr("crumb.run.lanes.processors", lambda count=processors: count)
        for one, other in zip(
            together, inputs(checkpoint, tokens, monkeypatch, batch), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_a_stage_without_stops_gives_the_same_bits(checkpoint: Checkpoint, variant: str) -> None:
    """An activation and the product behind it are one pass here, and two above."""
    tokens = make_tokens(VARIANTS[variant])
    texts = plan_texts(checkpoint, [Batch(tokens)])
    whole, pieces = Batch(tokens), Batch(tokens)
    for index, stage in enumerate(checkpoint.plan.stages):
        end = len(stage.operations)
        texts.run(index, 0, end, [whole])
        for place in range(end):
            texts.run(index, place, place + 1, [pieces])
        assert whole.buffers.keys() == pieces.buffers.keys() == {*stage.outputs}
        for name in whole.buffers:
            one, other = (texts.get(index, batch, name) for batch in (whole, pieces))
            np.testing.assert_array_equal(one, other)


def test_a_matrix_that_is_made_on_the_way_is_the_one_that_runs(tmp_path: Path) -> None:
    """The entries may change until the stage comes to them."""
    checkpoint = open_checkpoint(write_model(tmp_path, VARIANTS["llama"]))
    tokens = make_tokens(VARIANTS["llama"])
    entries = dict(checkpoint.tensors.entries)
    overlay = replace(checkpoint, tensors=replace(checkpoint.tensors, entries=entries))
    texts = plan_texts(overlay, [Batch(tokens)])
    first, second, *_ = layer_groups(checkpoint.plan.stages[1])
    _, key, value = first.linears

    def mixed(change: bool) -> NDArray[np.float32]:
        batch = Batch(tokens)
        texts.run(0, 0, 1, [batch])
        texts.run(1, 0, first.first, [batch])
        if change:
            entries[value.weight] = entries[key.weight]  # of the same shape
        texts.run(1, first.first, second.first, [batch])
        return batch.buffers[second.linears[0].input]

    original, changed, again = mixed(False), mixed(True), mixed(False)
    assert np.abs(changed - original).max() > 0
    np.testing.assert_array_equal(changed, again)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_next_linear_layer(value: float, tmp_path: Path) -> None:
    """Its statistics refuse it by name."""
    checkpoint = open_checkpoint(write_model(tmp_path, VARIANTS["llama"]))
    tokens = make_tokens(VARIANTS["llama"])
    texts, batch = plan_texts(checkpoint, [Batch(tokens)]), Batch(tokens)
    texts.run(0, 0, 1, [batch])
    batch.buffers["hidden"][tokens.shape[1] + 3, 7] = value
    walk = StageWalk(texts, 1, [batch])
    for group in walk.groups():
        rows = walk.inputs(group)[0].reshape(*tokens.shape, -1)
        assert not np.isfinite(rows[1, 3]).all()
        assert np.isfinite(rows[0]).all()  # the other text
