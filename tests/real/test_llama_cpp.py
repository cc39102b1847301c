"""Stock llama.cpp on our GGUF files: it loads every type and computes what we compute.

In: novella-7m in each type that we write, with its tokenizer. Out: greedy text and logprobs of
llama.cpp beside those of our exact engine, within what llama.cpp's rounded activations cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_server import answer, server_of, their_logprobs
from numpy.typing import NDArray

from crumb.embedded import MODELS
from crumb.exporting import Container, ExportRequest, export
from crumb.formats.layouts.gguf_types import GGUF_TYPES
from crumb.run.language_model import LanguageModel
from crumb.run.load import load
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text

pytestmark = pytest.mark.oracle

pytest.importorskip("xllamacpp")

Floats = NDArray[np.float64]

NOVELLA = MODELS["novella-7m"]
VOCABULARY = 4096
PROMPT = "The old man looked at the sea and"
GREEDY_TOKENS = 24

POSITIONS = range(40, 72)
"""Tokens of the text whose log-probabilities are compared, after all that come before them."""

ACTIVATION_ERROR = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
INT8_ERROR = 0.0071
"""Relative error of a product with int8 activations in blocks of 256, Gaussian: the largest of 256
is about 2.8 deviations, 2.8 / 127 a step, and a step's error its 12th root; blocks of 32 less."""

CACHE_ERROR = 2.0**-11
"""Of keys and values: llama.cpp keeps them in f16."""

MARGIN = 4
"""As in tests/e2e/test_native_evaluation.py: twice the error, either way."""


@pytest.fixture(scope="module", params=[*GGUF_TYPES])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """novella-7m in one type, every matrix of it."""
    out = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
    export(ExportRequest(str(NOVELLA), out, Container.GGUF, type=request.param))
    return out


@pytest.fixture(scope="module")
def ours(file: Path) -> Iterator[LanguageModel]:
    with load(file, context_tokens=256, activations="f32", cache="f32") as model:
        yield model


@pytest.fixture(scope="module")
def theirs(file: Path) -> Any:
    return server_of(file)


def our_logprobs(model: LanguageModel, tokens: list[int]) -> Floats:
    """Log-probabilities after every token, (tokens, vocabulary)."""
    logits = model.logits(tokens).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


def expected_divergence(logprobs: Floats, type_name: str) -> float:
    """The mean KL in nats that rounded activations and cache cost; the derivation is that of
    tests/e2e/test_native_evaluation.py."""
    products = 3 * ACTIVATION_ERROR.get(type_name, INT8_ERROR) ** 2
    probability = np.exp(logprobs)
    centered = logprobs - (probability * logprobs).sum(-1, keepdims=True)
    spread = (probability * centered**2).sum(-1).mean()
    return float((products + 2 * CACHE_ERROR**2) * spread / 2)


def test_log_probabilities_are_ours_within_its_rounding(
    file: Path, ours: LanguageModel, theirs: Any
) -> None:
    text = read_text("excerpt-evaluation", Use.EVALUATION).text
    tokens = ours.tokenizer.encode(text)[: POSITIONS.stop]
    exact = our_logprobs(ours, tokens)[[position - 1 for position in POSITIONS]]
    found = np.stack(
        [their_logprobs(theirs, tokens[:position], VOCABULARY) for position in POSITIONS]
    )
    assert np.isfinite(found).all()
    divergence = (np.exp(exact) * (exact - found)).sum(axis=-1).mean()
    assert divergence <= MARGIN * expected_divergence(exact, file.stem)
    # Perplexity: the mean of single differences, each as uncertain as the KL says.
    true = np.asarray(tokens[POSITIONS.start : POSITIONS.stop])
    rows = np.arange(len(true))
    moved = (found[rows, true] - exact[rows, true]).mean()
    deviation = np.sqrt(2 * MARGIN * expected_divergence(exact, file.stem) / len(true))
    assert abs(moved) <= 4 * deviation


def test_greedy_text_is_ours_until_two_tokens_are_as_likely(
    ours: LanguageModel, theirs: Any
) -> None:
    never = dict.fromkeys(ours.tokenizer.end_tokens, float("-inf"))
    mine = ours.generate(PROMPT, max_tokens=GREEDY_TOKENS, ignore_end=True, logit_bias=never).tokens
    _, steps = answer(theirs, PROMPT, GREEDY_TOKENS, 2)
    for place, (token, step) in enumerate(zip(mine, steps, strict=False)):
        best, second = (each["logprob"] for each in step["top_logprobs"])
        if token != step["id"]:
            assert best - second < 0.1, f"token {place}"
            assert token == step["top_logprobs"][1]["id"]
            return
    assert len(steps) >= 8, "the model goes on"


def test_its_tokenizer_is_ours(ours: LanguageModel, theirs: Any) -> None:
    """A text as a prompt and as our tokens are as long, and the next token is as likely.

    Likelihoods differ by what llama.cpp's cached prompts change: under .01 nats here.
    """
    for text in (PROMPT, "Two  spaces\n\nand a line, 12345 naïve — don't!", "x" * 40):
        (length, (first,)) = answer(theirs, text, 1, 1)
        (as_long, (second,)) = answer(theirs, ours.tokenizer.encode(text), 1, 1)
        assert length == as_long
        assert first["id"] == second["id"]
        assert first["logprob"] == pytest.approx(second["logprob"], abs=0.01)
