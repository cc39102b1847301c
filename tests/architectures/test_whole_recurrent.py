"""Quantization of families that keep a state: less divergence by GPTQ than by rounding.

In: tiny models with a World vocabulary. Out: their divergence on a text where the matrices of one
kind alone are quantized; what of them stays float; the same answers in company, with guesses and
threads; a run that was stopped goes on to the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from exhaustive import exhaustive
from recurrent_models import write_recurrent_model

import crumb
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import Quantized
from crumb.evaluation.scores import score
from crumb.run.model import Model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import cut_windows

QUICK: dict[str, Any] = {"group_size": 32, "sequences": 24, "length_tokens": 128, "pack": False}
QUICK |= {"calibration": "excerpt-calibration", "asymmetric": False}
"""A kind of matrix is looked at alone: it has no earlier layers to answer for."""

WIDER = {
    "qwen3_next": {"moe_intermediate_size": 40, "shared_expert_intermediate_size": 33}
    | {"linear_value_head_dim": 9},
    "granitemoehybrid": {"intermediate_size": 40},
    "rwkv7": {"gate_low_rank_dim": 40},
}
"""Matrices that read as many features as a group has, at least."""

Quantize = Callable[[str, int], dict[str, Checkpoint]]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    """The float model of a variant, and that in some bits by both methods."""

    @cache
    def make(variant: str, bits: int) -> dict[str, Checkpoint]:
        folder = tmp_path_factory.mktemp(variant)
        source = write_recurrent_model(folder / "float", variant, **WIDER.get(variant, {}))
        made = {"float": open_checkpoint(source)}
        for method in ("gptq", "round"):
            crumb.quantize(source, out=folder / method, bits=bits, method=method, **QUICK)
            made[method] = open_checkpoint(folder / method)
        return made

    return make


def kind_of(name: str) -> str:
    """A matrix's name without the numbers of its block and expert."""
    return re.sub(r"\.\d+\.", ".", name)


def divergences(made: dict[str, Checkpoint]) -> dict[str, tuple[float, float]]:
    """By GPTQ and by rounding, of each kind of matrix in the blocks and of all of them."""
    exact = made["float"]
    tokenizer = Model(exact).tokenizer
    text = read_text("excerpt-evaluation", Use.EVALUATION)
    windows = cut_windows(text, tokenizer.encode, length=128, limit=12)
    blocks = exact.plan.stages[1:-1]
    names = {spec.name for stage in blocks for spec in stage.tensors() if spec.matrix}
    kinds = sorted({kind_of(name) for name in names})

    def with_kind(kind: str, method: str) -> Model:
        entries = dict(exact.tensors.entries)
        for name in names if kind == "all" else (each for each in names if kind_of(each) == kind):
            entries[name] = made[method].tensors.entry(name)
        return Model(replace(exact, tensors=replace(exact.tensors, entries=entries)))

    asked = [(kind, method) for kind in (*kinds, "all") for method in ("gptq", "round")]
    models = [Model(exact), *(with_kind(*each) for each in asked)]
    scores = score(models, windows.tokens, windows.first_scored, True)
    values = [float(each.divergence.mean()) for each in scores[1:] if each.divergence is not None]
    return dict(zip((*kinds, "all"), zip(values[::2], values[1::2], strict=True), strict=True))


@pytest.mark.parametrize(
    ("variant", "bits", "kinds"),
    [
        ("rwkv", 3, 7),
        *exhaustive(
            ("rwkv6", 3, 8),
            ("rwkv7", 3, 7),
            ("rwkv", 4, 7),
            ("mamba2", 3, 2),
            ("lfm2", 3, 9),
            ("bamba", 3, 9),
            ("granitemoehybrid-dense", 3, 4),
            ("granitemoehybrid", 3, 11),
            ("qwen3_next", 3, 15),
        ),
    ],
)
def test_gptq_diverges_less_than_rounding_in_the_matrices_of_each_kind(
    variant: str, bits: int, kinds: int, quantized: Quantize
) -> None:
    by_kind = divergences(quantized(variant, bits))
    assert len(by_kind) == kinds + 1, by_kind
    assert all(0 < gptq < rounded for gptq, rounded in by_kind.values()), by_kind


def test_what_decides_how_long_a_state_lasts_stays_float(quantized: Quantize) -> None:
    tensors = quantized("rwkv", 3)["gptq"].tensors
    floats = {name for name, each in tensors.entries.items() if not isinstance(each, Quantized)}
    for part in ("time_decay", "time_first", "time_mix_key", "time_mix_receptance", "ln1"):
        assert any(part in name for name in floats)
    assert not any(name.endswith("key.weight") for name in floats)


def test_a_quantized_model_writes_the_same_in_company_with_guesses_and_threads(
    quantized: Quantize,
) -> None:
    texts = ["the sea " * 30, "User: say the 12\n\n", "no", "a b c d e f " * 10]
    answers = []
    for threads, sequences, guesses in ((1, 1, False), (1, 4, True), (3, 4, False)):
        path = quantized("rwkv", 3)["gptq"].path
        with crumb.load(path, threads=threads, sequences=sequences) as model:
            asked = {"max_tokens": 90, "ignore_end": True, "speculate": guesses}
            made = (
                model.generate(texts, **asked)
                if sequences > 1
                else [model.generate(each, **asked) for each in texts]
            )
            answers.append([each.tokens for each in made])
    assert answers[0] == answers[1] == answers[2]
    assert all(len(tokens) == 90 for tokens in answers[0])
