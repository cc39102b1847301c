"""The native engine measures the embedded model as the array executor does.

In: novella-7m, float and at 3 bits. Out: perplexities of both executors, and what int8 activations
and each cache cost, below a bound that follows from their rounding errors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import crumb
from crumb import evaluate
from crumb.embedded import MODELS
from crumb.run.model import open_model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text

Logits = Callable[[str, str], NDArray[np.float64]]
NOVELLA = MODELS["novella-7m"]
TEXT = "excerpt-evaluation"
CUT: Any = {"text": TEXT, "window_tokens": 256, "limit_windows": 4}

INT8_ERROR = 0.0065
"""Relative error of a product of int8 activations in blocks of 128, Gaussian inputs."""

CACHE_ERROR = {"f32": 0.0, "f16": 2.0**-11, "int8": INT8_ERROR}
"""Relative error of keys and of values; an int8 block is a head's 64, so less than one of 128."""


def expected_divergence(logits: NDArray[np.float64], cache: str, activations: str) -> float:
    """The mean KL that rounding should cost, in nats.

    What attention and an MLP add to the hidden state went through two products, one after the
    other, so it is off by sqrt(2) of a product's relative error; so is the hidden state, as its
    parts are about orthogonal and their errors independent. The head is a third product. Keys and
    values are two further errors of what attention adds, before it averages over positions.
    Logits that are off by r of their own spread make a KL of half the variance of that under p.
    """
    products = 3 * INT8_ERROR**2 if activations == "int8" else 0.0
    squared = products + 2 * CACHE_ERROR[cache] ** 2
    probability = np.exp(logits - logits.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    centered = logits - (probability * logits).sum(-1, keepdims=True)
    spread = (probability * centered**2).sum(-1).mean()
    return float(squared * spread / 2)


MARGIN = 4
"""Twice the error, either way: inputs that are not Gaussian, errors that later blocks pass on."""


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    """The first tokens of the evaluation's text."""
    return open_model(str(NOVELLA)).tokenizer.encode(read_text(TEXT, Use.EVALUATION).text)[:512]


@pytest.fixture(scope="module")
def logits(quantized_novella: Path, tokens: list[int]) -> Logits:
    """Of all tokens, for a kind of cache and one of activations."""

    @functools.cache
    def run(cache: str, activations: str) -> NDArray[np.float64]:
        with crumb.load(quantized_novella, cache=cache, activations=activations) as model:
            return model.logits(tokens).astype(np.float64)

    return run


@pytest.mark.parametrize("bits", [16, 3])
def test_both_executors_find_the_same_perplexity(bits: int, quantized_novella: Path) -> None:
    path = str(NOVELLA if bits == 16 else quantized_novella)
    native, array = (
        evaluate(path, NOVELLA, **CUT, executor=executor) for executor in ("native", "array")
    )
    assert native.perplexity.value == pytest.approx(array.perplexity.value, rel=1e-5)
    assert native.divergence is not None
    assert array.divergence is not None
    for name in ("kl", "perplexity_ratio", "top1_agreement"):
        found, expected = (getattr(each.divergence, name) for each in (native, array))
        assert found.value == pytest.approx(expected.value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("activations", ["int8", "f32"])
@pytest.mark.parametrize("cache", ["f32", "f16", "int8"])
def test_rounded_activations_and_caches_cost_what_their_errors_say(
    cache: str, activations: str, logits: Logits
) -> None:
    exact, found = logits("f32", "f32"), logits(cache, activations)
    p, q = (each - np.logaddexp.reduce(each, axis=-1, keepdims=True) for each in (exact, found))
    divergence = (np.exp(p) * (p - q)).sum(-1).mean()
    expected = expected_divergence(exact, cache, activations)
    assert divergence <= MARGIN * expected
    assert (divergence > 0) == (expected > 0)
    if activations == "int8":
        assert divergence > expected_divergence(exact, "f32", "int8") / MARGIN


def test_perplexity_with_int8_activations_stays_within_what_their_divergence_allows(
    quantized_novella: Path,
) -> None:
    """The loss changes by KL on average, by sqrt(2 KL) a token: four standard errors of that."""
    path = str(quantized_novella)
    ran = evaluate(path, path, **CUT, activations="int8")
    assert ran.divergence is not None
    kl = ran.divergence.kl.value
    assert kl > 0
    allowed = kl + 4 * np.sqrt(2 * kl / ran.scored_tokens)
    assert abs(np.log(ran.divergence.perplexity_ratio.value)) < allowed
