"""One sequence from logits to text: what ends it, what is shown when, what is told at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crumb.embedded import MODELS
from crumb.errors import CheckpointError, UsageError
from crumb.files.model_files import DirectoryFiles
from crumb.requests.generate_request import GenerateRequest, Sampling
from crumb.run.generation import (
    FinishReason,
    Generation,
    PromptMeter,
    TextPiece,
    TextState,
    Timings,
)
from crumb.tokenizer.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(DirectoryFiles(Path(str(MODELS["novella-7m"]))))
VOCABULARY, END = 4096, 1
TIMINGS = Timings(0.1, 0.5, 2.0, 6.0, 4.0)
TEXT = "The sea 🙂 was\n\ncalm — that day."


def logits_for(token: int) -> NDArray[np.float32]:
    """Logits whose greedy choice is this token."""
    logits = np.zeros(VOCABULARY, np.float32)
    logits[token] = 4.0
    return logits


def run_tokens(state: TextState, tokens: list[int]) -> list[TextPiece]:
    """The pieces, until the state is finished."""
    pieces = []
    for token in tokens:
        if state.finished:
            break
        pieces.append(state.advance(logits_for(token)))
        if not state.finished:
            assert state.next_token == token
    return pieces


def started(**settings: Any) -> TextState:
    return TextState(GenerateRequest("x", **settings), [5, 6], TOKENIZER, VOCABULARY)


def finished(state: TextState, pieces: list[TextPiece]) -> Generation:
    """The result, after a look at what always holds."""
    result = state.result(timings=TIMINGS)
    assert result.text == "".join(piece.text for piece in pieces)
    assert result.tokens == tuple(token for piece in pieces for token in piece.tokens)
    assert result.completion_tokens == len(result.tokens)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert not pieces or pieces[-1].finish_reason is result.finish_reason
    assert (result.prompt_tokens, result.timings) == (2, TIMINGS)
    return result


def test_an_end_token_ends_the_text_and_is_not_part_of_it() -> None:
    state, tokens = started(), TOKENIZER.encode(TEXT)
    result = finished(state, run_tokens(state, [*tokens, END, *tokens]))
    assert (result.text, result.tokens) == (TEXT, tuple(tokens))
    assert (result.finish_reason, result.stop_string) == (FinishReason.STOP, None)


def test_an_ignored_end_token_is_a_token_like_others() -> None:
    tokens = TOKENIZER.encode("one")
    state = started(ignore_end=True, max_tokens=2 * len(tokens) + 1)
    result = finished(state, run_tokens(state, [*tokens, END, *tokens]))
    assert (result.text, result.finish_reason) == ("oneone", FinishReason.LENGTH)
    assert result.tokens == (*tokens, END, *tokens)


@pytest.mark.parametrize(("max_tokens", "room_tokens", "limit"), [(4, None, 4), (None, 3, 3)])
def test_the_length_is_limited_by_the_request_and_by_the_context(
    max_tokens: int | None, room_tokens: int | None, limit: int
) -> None:
    tokens = TOKENIZER.encode("The sea was calm and the sun shone")
    request = GenerateRequest("x", max_tokens=max_tokens)
    state = TextState(request, [5, 6], TOKENIZER, VOCABULARY, room_tokens=room_tokens)
    result = finished(state, run_tokens(state, tokens))
    assert result.tokens == tuple(tokens[:limit])
    assert result.finish_reason is FinishReason.LENGTH
    assert result.text == TOKENIZER.decode(tokens[:limit])


def test_no_tokens_may_be_asked_for() -> None:
    state = started(max_tokens=0)
    assert state.finished
    result = finished(state, [])
    assert (result.text, result.tokens, result.finish_reason) == ("", (), FinishReason.LENGTH)


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    tokens = TOKENIZER.encode("One.\n\nUser: two")
    state = started(stop=("\n\nUser:", "three"))
    pieces = run_tokens(state, tokens)
    result = finished(state, pieces)
    assert len(pieces) < len(tokens)
    assert (result.text, result.finish_reason) == ("One.", FinishReason.STOP)
    assert result.stop_string == "\n\nUser:"


def test_text_that_was_held_back_comes_with_the_last_piece() -> None:
    tokens = TOKENIZER.encode("One.\n\nUse")
    state = started(stop=("\n\nUser:",), max_tokens=len(tokens))
    pieces = run_tokens(state, tokens)
    assert finished(state, pieces).text == "One.\n\nUse"
    assert pieces[-1].text == "\n\nUse"
    state = started(stop=("\n\nUser:",))
    pieces = run_tokens(state, [*tokens, END])
    assert finished(state, pieces).text == "One.\n\nUse"
    assert pieces[-1].tokens == ()


def test_a_stop_string_that_only_the_end_makes_certain_is_found() -> None:
    """Half a character may be the last token; as U+FFFD it can complete a stop string."""
    half = TOKENIZER.encode("🙂")[:1]
    assert TOKENIZER.decode(half) == "\ufffd"
    state = started(stop=("a\ufffd",), max_tokens=2)
    result = finished(state, run_tokens(state, [*TOKENIZER.encode("a"), *half]))
    assert (result.text, result.finish_reason) == ("", FinishReason.STOP)
    assert result.stop_string == "a\ufffd"


def test_a_cancelled_generation_gives_what_it_has() -> None:
    state, tokens = started(stop=("day!",)), TOKENIZER.encode("a day")
    pieces = [*run_tokens(state, tokens), state.cancel()]
    result = finished(state, pieces)
    assert (result.text, result.finish_reason) == ("a day", FinishReason.CANCELLED)
    assert pieces[-1].tokens == ()


@given(st.text(alphabet="ab 🙂\n", max_size=30), st.sampled_from(["", "b", "a\n", "🙂 a", "ab🙂"]))
def test_any_text_is_cut_where_its_stop_string_begins(text: str, stop: str) -> None:
    state = started(stop=(stop,) if stop else ())
    pieces = run_tokens(state, [*TOKENIZER.encode(text), END])
    result = finished(state, pieces)
    assert result.text == (text.split(stop)[0] if stop else text)
    assert result.stop_string == (stop if stop and stop in text else None)


def test_logprobs_stand_beside_their_tokens() -> None:
    tokens = TOKENIZER.encode(" sea 🙂")
    state = started(logprobs=2)
    pieces = run_tokens(state, [*tokens, END])
    result = finished(state, pieces)
    assert result.logprobs is not None
    assert result.logprobs == tuple(entry for piece in pieces for entry in piece.logprobs)
    expected = 4.0 - math.log(math.exp(4.0) + VOCABULARY - 1)
    for token, entry in zip(tokens, result.logprobs, strict=True):
        assert (entry.token, entry.text) == (token, TOKENIZER.decode([token]))
        # the sum of 4096 terms of exp(0) = 1 is exact; the log and exp are off by one rounding each
        assert entry.logprob == pytest.approx(expected, abs=1e-14)
        assert [top.token for top in entry.top] == [token, 0]
        assert entry.top[0].logprob == entry.logprob
        assert entry.top[1].text == "<s>"
    plain = started()
    assert finished(plain, run_tokens(plain, [END])).logprobs is None


def test_logprobs_of_a_prompt_begin_with_one_that_nothing_predicts() -> None:
    tokens = TOKENIZER.encode("The sea")
    logits = np.stack([logits_for(token) for token in [*tokens[1:], 9]])
    for cuts in ([len(tokens)], [1, len(tokens)], [len(tokens) - 1]):  # what follows may be there
        meter, begin = PromptMeter(tokens, 1), 0
        for end in cuts:
            meter.read(logits[begin:end])
            begin = end
        entries = meter.logprobs(TOKENIZER)
        assert [entry.token for entry in entries] == tokens
        assert (entries[0].logprob, entries[0].top) == (None, ())
        assert all(entry.top[0].logprob == entry.logprob for entry in entries[1:])
    state = started(max_tokens=0)
    assert state.result(timings=TIMINGS, prompt_logprobs=entries).prompt_logprobs == entries
    assert PromptMeter([], 1).logprobs(TOKENIZER) == ()


def test_a_generation_that_failed_has_its_error_and_the_text_so_far() -> None:
    state, error = started(), ValueError("broken")
    pieces = run_tokens(state, TOKENIZER.encode(TEXT))
    pieces.append(state.fail(error))
    result = finished(state, pieces)
    assert (result.finish_reason, result.error) == (FinishReason.ERROR, error)
    assert TEXT.startswith(result.text)
    assert result.text


def test_what_the_engine_knows_is_handed_on() -> None:
    state = started(max_tokens=0)
    result = state.result(timings=TIMINGS, cached_tokens=1, peak_memory_bytes=77)
    assert (result.cached_tokens, result.peak_memory_bytes) == (1, 77)


def test_sampling_settings_reach_the_choice() -> None:
    state = started(sampling=Sampling(logit_bias={9: 100.0}), max_tokens=1)
    assert run_tokens(state, [7])[0].tokens == (9,)
    sampling = Sampling(presence_penalty=2.0, repetition_penalty=2.5)
    state = started(sampling=sampling, max_tokens=2)
    state.advance(logits_for(7))
    second = logits_for(7)
    second[6] = 1.0  # of the prompt: 0.4 after the penalty, more than 4 / 2.5 - 2
    assert state.advance(second).tokens == (6,)


def test_logits_that_are_not_numbers_end_in_an_error() -> None:
    with pytest.raises(CheckpointError, match="not numbers"):
        started().advance(np.full(VOCABULARY, np.nan, np.float32))


BAD_REQUESTS: list[dict[str, Any]] = [
    {"prompt": ("a",)},
    {"prompt": (True,)},
    {"prompt": (3, -1)},
    {"max_tokens": -1},
    {"max_tokens": 1.5},
    {"max_tokens": True},
    {"logprobs": -1},
    {"stop": ("",)},
    {"stop": 5},
    {"stop": (5,)},
    {"prompt": b"bytes"},
    {"prompt": None},
    {"prompt": np.zeros((2, 2), np.int64)},
    {"prompt": np.zeros(2)},
]


@pytest.mark.parametrize("settings", BAD_REQUESTS)
def test_a_request_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        GenerateRequest(**{"prompt": "x"} | settings)
