"""Guessed tokens change no text, and are guessed only where that pays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import crumb
from crumb.embedded import MODELS
from crumb.kernels.engine import PAGE_TOKENS
from crumb.requests.generate_request import GenerateRequest, make_request
from crumb.run.language_model import LanguageModel
from crumb.run.pacing import StepTimes
from crumb.run.speculation import (
    MOST_DRAFTED,
    PROBE_STEPS,
    PROBE_TOKENS,
    Speculation,
    Speculator,
)

REPEATING = "The cat sat on the mat. The dog sat on the log. " * 6
PLAIN = "Once upon a time there was a girl who"


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    with crumb.load(MODELS["novella-7m"], sequences=4, context_tokens=512) as loaded:
        yield loaded


class Eager(Speculation):
    """Drafts whatever it can, whether it pays or not."""

    def drafts_for(self, speculators: Any, rooms: Any, rows: int) -> list[list[int]]:
        drafts = []
        for each, room in zip(speculators, rooms, strict=True):
            draft = [] if each is None else each.draft(min(room, MOST_DRAFTED, rows))
            rows -= len(draft)
            drafts.append(draft)
        return drafts


@pytest.fixture
def eager(model: LanguageModel) -> Iterator[Speculation]:
    """The model's scheduler guesses at every step."""
    scheduler = model.scheduler
    before, eager = scheduler.speculation, Eager()
    scheduler.speculation = scheduler._composer.speculation = eager
    yield eager
    scheduler.speculation = scheduler._composer.speculation = before


def asked(speculate: bool) -> list[GenerateRequest]:
    """Requests of all kinds: greedy and drawn, with stops, penalties, forms, logprobs, limits."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        (REPEATING, {}),
        (PLAIN, {"temperature": 0.8, "seed": 1}),
        (REPEATING, {"temperature": 1.0, "seed": 2, "top_k": 20}),
        (REPEATING, {"repetition_penalty": 1.1, "frequency_penalty": 0.2}),
        (REPEATING, {"stop": ["log"], "logprobs": 2}),
        (REPEATING, {"max_tokens": 1}),
        (REPEATING, {"max_tokens": 2, "prompt_logprobs": True}),
        (PLAIN, {"regex": "( the cat sat on the mat\\.){3,5}"}),
        (PLAIN, {"ignore_end": True, "max_tokens": 90}),
        (REPEATING, {"logits_hook": lambda tokens, logits: logits.argsort() > len(tokens)}),
    ]
    return [
        make_request(prompt, **{"max_tokens": 40, **options}, speculate=speculate)
        for prompt, options in kinds
    ]


def outcome(model: LanguageModel, requests: list[GenerateRequest]) -> list[Any]:
    """What became of requests together, without their times."""
    generations = model.run(requests)
    assert all(each.error is None for each in generations)
    return [
        (each.tokens, each.text, each.finish_reason, each.stop_string, each.logprobs)
        for each in generations
    ]


def test_guesses_change_no_text_alone_or_together(model: LanguageModel, eager: Speculation) -> None:
    expected = outcome(model, asked(speculate=False))
    assert eager.guesses.drafts == 0
    alone = [outcome(model, [each])[0] for each in asked(speculate=True)]
    assert alone == expected
    assert 0 < eager.guesses.accepted_tokens < eager.guesses.drafted_tokens
    assert outcome(model, asked(speculate=True)) == expected
    assert outcome(model, asked(speculate=True)[::-1]) == expected[::-1]


def test_a_text_after_wrong_guesses_is_found_in_the_cache_and_nothing_else_is(
    model: LanguageModel, eager: Speculation
) -> None:
    text = REPEATING + "A bird"
    for speculate in (True, False, True):
        first = model.generate(text, max_tokens=70, speculate=speculate)
        tokens = [*model.tokens_of(text), *first.tokens]
        again = model.generate(tokens, max_tokens=8, speculate=speculate)
        assert again.cached_tokens >= (len(tokens) - 2) // PAGE_TOKENS * PAGE_TOKENS
        alone = model.generate(tokens, max_tokens=8, prompt_logprobs=True, speculate=False)
        assert alone.cached_tokens == 0
        assert again.tokens == alone.tokens
    assert eager.guesses.drafted_tokens > eager.guesses.accepted_tokens


@pytest.mark.usefixtures("eager")
def test_every_page_is_free_when_all_have_ended(model: LanguageModel) -> None:
    assert model.run(asked(speculate=True))
    assert model.engine.free_pages == model.engine._pages.count
    for name in model.engine._pages._by_key.values():
        assert model.engine._pages._known[name] is not None


def test_a_draft_is_what_followed_the_last_time() -> None:
    speculator = Speculator([1, 2, 3, 4, 5, 1, 2, 3, 9, 7, 1, 2, 3])
    assert speculator.draft(4) == [9, 7, 1, 2]
    speculator.extend(9)
    assert speculator.draft(2) == [7, 1]
    assert Speculator([1, 2, 3, 4]).draft(4) == []
    assert Speculator([]).draft(4) == []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 12))
def test_drafts_are_as_long_as_was_asked_and_end_where_a_match_ends(
    tokens: list[int], most: int
) -> None:
    draft = Speculator(tokens).draft(most)
    assert len(draft) in (0, most)
    if draft:
        ending = tokens[-3:]
        places = [k for k in range(3, len(tokens)) if tokens[k - 3 : k] == ending]
        assert draft[0] in [tokens[place] for place in places]


def test_a_text_that_repeats_itself_is_guessed_to_go_on() -> None:
    assert Speculator([7, 8, 9] * 3).draft(7) == [7, 8, 9, 7, 8, 9, 7]


def test_a_draft_is_as_long_as_it_pays() -> None:
    speculation, speculator = Speculation(), Speculator([1, 2, 3, 4] * 6)
    for rows in range(1, 17):
        speculation.times.note(rows, 1.0 if rows <= 4 else 9.0)
    (draft,) = speculation.drafts_for([speculator], [30], 15)
    assert len(draft) == 3
    assert speculation.drafts_for([speculator], [2], 15) == [draft[:2]]
    assert speculation.drafts_for([speculator], [30], 1) == [draft[:1]]
    assert speculation.drafts_for([None, speculator], [30, 30], 14) == [[], draft[:2]]


def test_guessing_stops_where_it_does_not_pay_and_is_tried_again() -> None:
    speculation, speculator = Speculation(), Speculator([1, 2, 3, 4] * 6)
    for rows in range(1, 17):
        speculation.times.note(rows, 1.0 + 0.3 * rows)
    lengths = []
    for _ in range(3 * PROBE_STEPS):
        (draft,) = speculation.drafts_for([speculator], [30], 15)
        lengths.append(len(draft))
        speculation.learn(speculator, len(draft), 0)
    assert lengths[0] > 0
    assert sum(lengths) <= 12 * PROBE_TOKENS
    assert lengths[-2 * PROBE_STEPS :].count(PROBE_TOKENS) in (1, 2, 3)
    for _ in range(PROBE_STEPS * 30):
        (draft,) = speculation.drafts_for([speculator], [30], 15)
        speculation.learn(speculator, len(draft), len(draft))
    assert len(draft) > PROBE_TOKENS


def test_times_of_steps_are_between_those_that_were_measured() -> None:
    times = StepTimes()
    assert times.seconds(3) == 1.0
    times.note(1, 1.0)
    assert times.seconds(4) == pytest.approx(1.3)
    times.note(5, 3.0)
    assert times.seconds(3) == pytest.approx(2.0)
    for _ in range(40):
        times.note(5, 1.0)
    assert times.seconds(5) == pytest.approx(1.0, rel=0.01)
    times.note(5, 1000.0)
    assert times.seconds(5) < 1.3
