"""Every family against what transformers made of its tiny models: printed Plans and logits.

In: the golden files beside this test, recorded by record_golden.py. No transformers is needed here.
The same logits must come out at once, token by token, in chunks, and on another array library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import array_api_strict
import numpy as np
import pytest
from exhaustive import EACH_FAMILY
from tiny_models import (
    EVERY,
    GOLDEN,
    PLACES,
    VARIANTS,
    make_tokens,
    tolerance,
    uniform,
    write_model,
)

from crumb.architectures.registry import families, plan_of
from crumb.cli.families import differences
from crumb.operations.attention import QUERY_BLOCK
from crumb.run.model import Model, open_model
from crumb.run.session import Session

Opener = Callable[[str], Model]

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


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


def test_every_family_has_tiny_models_and_every_tiny_model_golden_files() -> None:
    assert {each["model_type"] for each in EVERY.values()} == set(families())
    recorded = {path.name for path in GOLDEN.iterdir()}
    assert recorded == {f"{variant}.{kind}" for variant in EVERY for kind in ("json", "npz")}


def test_every_family_has_a_figure_in_the_table() -> None:
    assert differences().keys() == families().keys()


def test_the_texts_are_longer_than_a_query_block_and_the_windows() -> None:
    given = [each.get(key) or 0 for each in VARIANTS.values() for key in WINDOWS]
    assert max(PLACES) > QUERY_BLOCK > max(given) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_printed_plan_is_the_golden_text(variant: str) -> None:
    assert str(plan_of(VARIANTS[variant])).splitlines() == golden(variant)["plan"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_spellings_of_transformers_4_and_5_mean_the_same_plan(variant: str) -> None:
    assert plan_of(VARIANTS[variant]) == plan_of(golden(variant)["configuration"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_prompt_are_those_of_transformers(variant: str, opened: Opener) -> None:
    model, expected = opened(variant), golden(variant)["logits"]
    logits = model.logits(make_tokens(VARIANTS[variant]))
    allowed = tolerance(model.plan, expected)
    np.testing.assert_allclose(logits[:, PLACES, :], expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("variant", EACH_FAMILY)
def test_cached_decoding_gives_the_logits_of_the_whole_text(variant: str, opened: Opener) -> None:
    model, tokens = opened(variant), make_tokens(VARIANTS[variant])
    whole = model.logits(tokens)
    one_by_one, chunks = Session(model), Session(model)
    singly = [one_by_one.feed([token]) for token in tokens[0]]
    split = [chunks.feed(part) for part in np.split(tokens[1], [1, 30, 31, 140])]
    allowed = tolerance(model.plan, whole)
    np.testing.assert_allclose(np.concatenate(singly), whole[0], rtol=0, atol=allowed)
    np.testing.assert_allclose(np.concatenate(split), whole[1], rtol=0, atol=allowed)
    assert one_by_one.length_tokens == chunks.length_tokens == tokens.shape[1]


@pytest.mark.parametrize("variant", EACH_FAMILY)
def test_the_executor_needs_nothing_beyond_the_array_standard(variant: str, opened: Opener) -> None:
    model, tokens = opened(variant), make_tokens(VARIANTS[variant])
    strict = Model(model.checkpoint, array_api_strict.asarray)
    logits = np.asarray(strict.logits(array_api_strict.asarray(tokens)))
    allowed = tolerance(model.plan, logits)
    np.testing.assert_allclose(logits, model.logits(tokens), rtol=0, atol=allowed)
    fed = Session(strict)
    halves = np.concatenate([fed.feed(part) for part in np.split(tokens[0], 2)])
    np.testing.assert_allclose(halves, logits[0], rtol=0, atol=allowed)


def test_a_tied_head_reads_the_embedding_and_needs_no_tensor_of_its_own(opened: Opener) -> None:
    model = opened("gptj-tied")
    names = [spec.name for spec in model.plan.tensors()]
    assert "lm_head.weight" not in names
    assert "lm_head.bias" in names
    assert list(model.plan.linears())[-1].weight == "transformer.wte.weight"


def test_the_weights_come_from_a_stream_that_never_changes() -> None:
    assert uniform(3, (2, 2)).tobytes().hex() == "aab9b7bf2a6669bf2a96853f66b9913e"
