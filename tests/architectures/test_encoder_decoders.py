"""Families that read a source and write a text, against what transformers made of tiny models.

In: the golden files beside this test, recorded by record_golden.py. No transformers is needed here.
The same logits must come out at once, token by token, in chunks, and on another array library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tiny_models import (
    ENCODER_DECODERS,
    GOLDEN,
    PLACES,
    make_sources,
    make_tokens,
    tolerance,
    write_model,
)

from crumb.architectures.registry import plan_of
from crumb.errors import CheckpointError
from crumb.run.model import Model, open_model
from crumb.run.session import Session

Opener = Callable[[str], Model]

each_variant = pytest.mark.parametrize("variant", ENCODER_DECODERS)


@cache
def golden(variant: str) -> dict[str, Any]:
    stated: dict[str, Any] = json.loads((GOLDEN / f"{variant}.json").read_text())
    with np.load(GOLDEN / f"{variant}.npz") as arrays:
        return stated | {"logits": arrays["logits"]}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opener:
    @cache
    def open_variant(variant: str) -> Model:
        folder = tmp_path_factory.mktemp(variant)
        return open_model(str(write_model(folder, golden(variant)["configuration"])))

    return open_variant


@cache
def texts(variant: str) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """What is written, and what is read."""
    configuration = ENCODER_DECODERS[variant]
    return make_tokens(configuration), {"source": make_sources(configuration)}


@each_variant
def test_the_printed_plan_is_the_golden_text(variant: str) -> None:
    assert str(plan_of(ENCODER_DECODERS[variant])).splitlines() == golden(variant)["plan"]


@each_variant
def test_the_spellings_of_transformers_4_and_5_mean_the_same_plan(variant: str) -> None:
    ours, theirs = plan_of(ENCODER_DECODERS[variant]), plan_of(golden(variant)["configuration"])
    assert ours.stages == theirs.stages


@each_variant
def test_logits_of_a_text_are_those_of_transformers(variant: str, opened: Opener) -> None:
    model, expected = opened(variant), golden(variant)["logits"]
    logits = model.logits(*texts(variant))
    allowed = tolerance(model.plan, expected)
    np.testing.assert_allclose(logits[:, PLACES, :], expected, rtol=0, atol=allowed)


@each_variant
def test_cached_decoding_gives_the_logits_of_the_whole_text(variant: str, opened: Opener) -> None:
    model, (tokens, given) = opened(variant), texts(variant)
    whole = model.logits(tokens, given)
    allowed = tolerance(model.plan, whole)
    for row, cuts in enumerate(([1, 30, 31, 140], range(1, tokens.shape[1]))):
        session = Session(model, {"source": given["source"][row : row + 1]})
        fed = np.concatenate([session.feed(part) for part in np.split(tokens[row], cuts)])
        np.testing.assert_allclose(fed, whole[row], rtol=0, atol=allowed)


@each_variant
def test_the_executor_needs_nothing_beyond_the_array_standard(variant: str, opened: Opener) -> None:
    model, (tokens, given) = opened(variant), texts(variant)
    strict = Model(model.checkpoint, array_api_strict.asarray)
    strictly = {name: array_api_strict.asarray(array) for name, array in given.items()}
    logits = np.asarray(strict.logits(array_api_strict.asarray(tokens), strictly))
    allowed = tolerance(model.plan, logits)
    np.testing.assert_allclose(logits, model.logits(tokens, given), rtol=0, atol=allowed)


def test_what_is_written_depends_on_what_was_read(opened: Opener) -> None:
    model, (tokens, given) = opened("t5"), texts("t5")
    changed = given["source"].copy()
    changed[0, 5] = (changed[0, 5] + 1) % model.plan.vocabulary
    before, after = model.logits(tokens, given), model.logits(tokens, {"source": changed})
    assert np.abs(before[0] - after[0]).max() > 0.01
    np.testing.assert_array_equal(before[1], after[1])


def test_a_tied_head_reads_the_embedding_and_is_scaled() -> None:
    tied, untied = (plan_of(ENCODER_DECODERS[name]).stages[-1] for name in ("t5", "t5-gated"))
    assert [each.word for each in tied.operations] == ["norm", "activation", "linear"]
    assert tied.operations[1].number == pytest.approx(42**-0.5)  # type: ignore[attr-defined]
    assert [each.word for each in untied.operations] == ["norm", "linear"]
    weights = [stage.operations[-1].weight for stage in (tied, untied)]  # type: ignore[attr-defined]
    assert weights == ["shared.weight", "lm_head.weight"]


def test_a_head_that_no_file_has_is_the_embedding_unscaled(opened: Opener, tmp_path: Path) -> None:
    """transformers 5 writes so where a model was made untied: it ties all the same."""
    folder = write_model(tmp_path, golden("t5-gated")["configuration"])
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    tokens, given = texts("t5-gated")
    tied = open_model(str(folder))
    np.testing.assert_array_equal(
        tied.checkpoint.tensors.read_float("lm_head.weight"), weights["shared.weight"]
    )
    logits, untied = tied.logits(tokens, given), opened("t5-gated").logits(tokens, given)
    assert np.isfinite(logits).all()
    assert np.abs(logits - untied).max() > 0.1


@pytest.mark.parametrize(
    "changed",
    [
        {"feed_forward_proj": "gated-gelu-new"},
        {"feed_forward_proj": "swiglu-gelu"},
        {"feed_forward_proj": None},
        {"feed_forward_proj": "gated-"},
        {"relative_attention_num_buckets": 3},
        {"relative_attention_max_distance": 6},
        {"relative_attention_max_distance": 5000},
        {"num_decoder_layers": 0},
        {"scale_decoder_outputs": "yes"},
    ],
)
def test_what_the_halves_cannot_be_is_refused_by_its_key(changed: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"config.json: {next(iter(changed))}"):
        plan_of(ENCODER_DECODERS["t5"] | changed)
