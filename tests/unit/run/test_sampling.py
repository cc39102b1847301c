"""Tokens are chosen as the settings say: against a plain computation, and by how often they come.

The reference sorts everything and adds with Python's own sums; where its decision hangs on a
rounding (a share met to 1e-9) both answers are right, so it is asked a little to either side too.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crumb.errors import CheckpointError, UsageError
from crumb.requests.generate_request import Sampling
from crumb.run.sampling import Sampler, log_softmax, measure, most_likely

VOCABULARY = 12
EPSILON = 1e-9


class Uniforms:
    """In place of the generator: the numbers that a test wants drawn."""

    def __init__(self, *uniforms: float) -> None:
        self._raws = [int(uniform * 2**53) << 11 for uniform in uniforms]

    def random_raw(self) -> int:
        return self._raws.pop(0)


def adjusted_reference(
    logits: list[float], sampling: Sampling, prompt: list[int], generated: list[int]
) -> list[float]:
    """Logits after logit_bias and penalties, one token at a time."""
    window = sampling.penalty_window_tokens or len(prompt) + len(generated)
    recent = (prompt + generated)[-window:]
    recent_generated = recent[max(0, len(recent) - len(generated)) :]
    biases = dict(sampling.logit_bias)
    scores = []
    for token, logit in enumerate(logits):
        score = logit + biases.get(token, 0.0)
        if token in recent:
            factor = sampling.repetition_penalty
            score = score / factor if score > 0 else score * factor
        count = recent_generated.count(token)
        score -= sampling.presence_penalty * (count > 0)
        scores.append(score - sampling.frequency_penalty * count)
    return scores


def chosen_reference(
    scores: list[float], sampling: Sampling, uniform: float, nudges: tuple[float, ...]
) -> int:
    """The token by full sorts; the nudges move what is compared by rounding errors."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    if sampling.temperature == 0.0:
        return order[0]
    kept = order[: sampling.top_k or None]
    best = scores[order[0]]
    weight = {token: math.exp((scores[token] - best) / sampling.temperature) for token in kept}
    if sampling.top_p < 1.0:
        wanted = (sampling.top_p + nudges[0]) * math.fsum(weight.values())
        sums = itertools.accumulate(weight[token] for token in kept)
        kept = kept[: 1 + sum(total < wanted for total in sums)]
    kept = [token for token in kept if weight[token] >= sampling.min_p + nudges[1]] or kept[:1]
    reached, aim = 0.0, (uniform + nudges[2]) * math.fsum(weight[token] for token in kept)
    for token in sorted(kept):
        reached += weight[token]
        if reached > aim:
            return token
    return max(token for token in kept if weight[token])


NUDGES = list(itertools.product((-EPSILON, 0.0, EPSILON), (-EPSILON, 0.0), (-EPSILON, 0.0)))

LOGITS = st.lists(
    st.integers(-20, 20).map(lambda value: value / 4), min_size=VOCABULARY, max_size=VOCABULARY
)
TOKENS = st.integers(0, VOCABULARY - 1)
SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.01, 0.7, 1.0, 5.0]),
        "top_k": st.integers(0, VOCABULARY + 2),
        "top_p": st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
        "frequency_penalty": st.sampled_from([-0.5, 0.0, 0.4]),
        "presence_penalty": st.sampled_from([-0.5, 0.0, 1.5]),
        "penalty_window_tokens": st.integers(0, 6),
        "logit_bias": st.dictionaries(
            TOKENS, st.sampled_from([-math.inf, -3.0, 2.5]), max_size=VOCABULARY - 1
        ),
    }
)
STEPS = st.lists(st.tuples(LOGITS, st.floats(0.0, 1.0, exclude_max=True)), min_size=1, max_size=6)


@given(SETTINGS, st.lists(TOKENS, max_size=8), STEPS)
def test_every_choice_is_what_full_sorts_would_choose(
    settings: dict[str, Any], prompt: list[int], steps: list[tuple[list[float], float]]
) -> None:
    sampling = Sampling(**settings)
    sampler = Sampler(sampling, VOCABULARY, prompt)
    if sampling.temperature:
        sampler._random = Uniforms(*(uniform for _, uniform in steps))
    generated: list[int] = []
    for logits, uniform in steps:
        token = sampler.choose(np.asarray(logits, np.float32))
        scores = adjusted_reference(logits, sampling, prompt, generated)
        allowed = {chosen_reference(scores, sampling, uniform, nudges) for nudges in NUDGES}
        assert token in allowed
        generated.append(token)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=2000), st.integers(1, 2100))
def test_the_most_likely_are_the_first_of_a_stable_sort(values: list[int], count: int) -> None:
    array = np.asarray(values, np.float32)
    expected = np.argsort(-array, kind="stable")[:count]
    np.testing.assert_array_equal(most_likely(array, count), expected)


@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.99999])
def test_a_flat_distribution_of_a_large_vocabulary_keeps_exactly_its_share(top_p: float) -> None:
    """More tokens than the first guesses at the set hold; of equal ones the first are kept."""
    vocabulary = 5000
    logits = np.zeros(vocabulary, np.float32)
    sampler = Sampler(Sampling(temperature=1.0, top_p=top_p), vocabulary)
    sampler._random = Uniforms(0.0, 1.0 - 2.0**-53)
    assert sampler.choose(logits) == 0
    assert sampler.choose(logits) == math.ceil(top_p * vocabulary) - 1


def test_a_draw_of_zero_takes_the_first_token_that_may_be() -> None:
    sampler = Sampler(Sampling(temperature=1.0, logit_bias={0: -math.inf}), 3)
    sampler._random = Uniforms(0.0)
    assert sampler.choose(np.zeros(3, np.float32)) == 1


def test_tokens_come_as_often_as_their_probability_says() -> None:
    """Hoeffding: a frequency of n draws is off by t with probability 2 exp(-2 n t^2) at most."""
    draws, failure = 10_000, 1e-9
    logits = np.asarray([1.0, 0.0, 2.0, -1.0, 0.5], np.float32)
    bound = math.sqrt(math.log(2 * len(logits) / failure) / (2 * draws))
    sampler = Sampler(Sampling(temperature=0.8, seed=11), len(logits))
    found = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=5) / draws
    expected = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
    assert bound < 0.04
    assert np.abs(found - expected).max() < bound


def random_logits(places: int, vocabulary: int = 50) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(places, vocabulary)).astype(np.float32)


def run_sampler(sampler: Sampler, rows: NDArray[np.float32]) -> list[int]:
    return [sampler.choose(row) for row in rows]


def test_a_draw_depends_on_the_seed_and_the_place_in_the_sequence_alone() -> None:
    rows = random_logits(20)
    whole = run_sampler(Sampler(Sampling(temperature=2.0, seed=5), 50, [1, 2, 3]), rows)
    for cut in (1, 7):
        prompt = [1, 2, 3, *whole[:cut]]
        continued = Sampler(Sampling(temperature=2.0, seed=5, top_k=50), 50, prompt)
        assert run_sampler(continued, rows[cut:]) == whole[cut:]
    assert run_sampler(Sampler(Sampling(temperature=2.0, seed=6), 50, [1, 2, 3]), rows) != whole
    assert run_sampler(Sampler(Sampling(temperature=2.0, seed=5), 50, [1, 2]), rows) != whole


def test_the_drawn_numbers_of_a_seed_never_change() -> None:
    """PCG64's stream is promised by NumPy; a change here would change everybody's texts."""
    logits = np.zeros(1000, np.float32)
    sampler = Sampler(Sampling(temperature=1.0, seed=7), 1000)
    generator = np.random.Generator(np.random.PCG64(7))
    expected = [int(generator.random() * 1000) for _ in range(5)]
    assert [sampler.choose(logits) for _ in range(5)] == expected == [625, 897, 775, 225, 300]


def test_penalties_follow_their_definitions() -> None:
    logits = np.asarray([2.0, -2.0, 1.9, -1.0, 0.5], np.float32)
    sampling = Sampling(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    sampler = Sampler(sampling, 5, [0, 1, 4])
    # the prompt's tokens are divided or multiplied; what was generated pays by its count too
    np.testing.assert_array_equal(
        sampler._adjusted(logits), [1.0, -4.0, np.float32(1.9), -1.0, 0.25]
    )
    assert [sampler.choose(logits) for _ in range(2)] == [2, 0]
    third = np.float32(1.9) / 2.0 - 0.75
    np.testing.assert_array_equal(sampler._adjusted(logits), [0.25, -4.0, third, -1.0, 0.25])


def test_logprobs_are_the_models_own_whatever_was_done_to_choose() -> None:
    rows = random_logits(4)
    sampling = Sampling(temperature=0.5, top_k=3, repetition_penalty=1.5, logit_bias={7: 50.0})
    sampler = Sampler(sampling, 50, [4, 5])
    for row in rows:
        own = row.astype(np.float64) - math.log(math.fsum(math.exp(value) for value in row))
        measured = measure(row, sampler.choose(row), 2)
        assert measured.token == 7
        # a sum of 50 terms and two logs, in f64: some tens of roundings of 1e-16
        assert measured.logprob == pytest.approx(own[7], abs=1e-14)
        best = sorted(range(50), key=lambda token: -row[token])[:2]
        assert [token for token, _ in measured.top] == best
        assert [logprob for _, logprob in measured.top] == pytest.approx(own[best], abs=1e-14)


def test_the_greedy_token_has_exactly_the_largest_logprob() -> None:
    """Clients compare the two floats to see whether a text is what greedy decoding gives."""
    for row in random_logits(50):
        measured = measure(row, Sampler(Sampling(), 50).choose(row), 1)
        assert measured.top == ((measured.token, measured.logprob),)
        assert measured.logprob == log_softmax(row).max()


def test_as_many_likely_tokens_are_told_as_are_asked_and_there() -> None:
    row = random_logits(1)[0]
    assert [len(measure(row, 3, top).top) for top in (0, 1, 50, 80)] == [0, 1, 50, 50]


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=20))
@example([1e38, -1e38, 0.0])
@example([-math.inf, 2.0])
def test_logprobs_of_any_logits_sum_to_one(logits: list[float]) -> None:
    logprobs = log_softmax(np.asarray(logits, np.float32))
    # each of the 20 terms is off by its own rounding and that of the common log
    assert math.fsum(np.exp(logprobs)) == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-300])
def test_equal_logits_give_the_lowest_token_first(temperature: float) -> None:
    logits = np.asarray([1.0, 3.0, 3.0, 3.0], np.float32)
    sampling = Sampling(temperature=temperature, top_k=1)
    assert Sampler(sampling, 4).choose(logits) == 1
    assert [token for token, _ in measure(logits, 0, 3).top] == [1, 2, 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0), Sampling(logit_bias={0: 1.0})]
)
def test_logits_that_are_not_numbers_are_refused(bad: float, sampling: Sampling) -> None:
    logits = np.zeros(9, np.float32)
    logits[5] = bad
    with pytest.raises(CheckpointError, match="logits are not numbers"):
        Sampler(sampling, 9).choose(logits)


def test_a_bias_may_forbid_tokens_but_not_all_of_them() -> None:
    logits = np.asarray([5.0, 1.0], np.float32)
    assert Sampler(Sampling(logit_bias={0: -math.inf}), 2).choose(logits) == 1
    with pytest.raises(UsageError, match=r"logit_bias: no token may be chosen"):
        Sampler(Sampling(logit_bias={0: -math.inf, 1: -math.inf}), 2).choose(logits)


OUT_OF_RANGE: list[tuple[str, Any]] = [
    *((name, math.nan) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
    *((name, math.nan) for name in ("frequency_penalty", "presence_penalty")),
    *((name, bad) for name in ("top_k", "seed", "penalty_window_tokens") for bad in (-1, 1.0)),
    ("seed", 1 << 64),
    ("temperature", -0.1),
    ("temperature", math.inf),
    ("temperature", "1"),
    ("temperature", True),
    ("top_k", True),
    ("top_p", 1.01),
    ("min_p", -0.01),
    ("repetition_penalty", 0.0),
    ("frequency_penalty", 2.5),
    ("logit_bias", {0: math.nan}),
    ("logit_bias", {0: math.inf}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {"0": 1.0}),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})


def test_a_sampling_is_a_value() -> None:
    assert Sampling(logit_bias={3: 1.0, 1: 2.0}).logit_bias == ((1, 2.0), (3, 1.0))
    assert hash(Sampling(logit_bias={3: 1.0})) == hash(Sampling(logit_bias=((3, 1.0),)))
    assert Sampling(temperature=1, seed=2) == Sampling(temperature=1.0, seed=2)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(UsageError, match=r"logit_bias: .*expected 0 to 3, found 4"):
        Sampler(Sampling(logit_bias={4: 1.0}), 4)
    with pytest.raises(UsageError, match=r"the prompt: .*found 4"):
        Sampler(Sampling(presence_penalty=1.0), 4, [1, 4])


@pytest.mark.parametrize("bias", [1e308, 3.5e38, -3.5e38])
def test_biases_beyond_single_precision_decide(bias: float) -> None:
    sampling = Sampling(temperature=1.0, seed=1, logit_bias={1: bias, 2: -bias})
    sampler = Sampler(sampling, 8)
    drawn = {sampler.choose(np.zeros(8, np.float32)) for _ in range(4)}
    assert drawn == {1 if bias > 0 else 2}
