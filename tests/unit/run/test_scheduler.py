"""Requests that join, leave, fail and are cancelled while others go on give what they give alone.

In: the tiny checkpoint. Out: pieces and generations; in the end every page is free again. Steps and
their parts are counted, so that what does not share them is seen.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from crumb.errors import DoesNotFit, QueueFull, RequestCancelled, UsageError
from crumb.requests.generate_request import GenerateRequest, make_request
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.generation import FinishReason, Generation, TextPiece
from crumb.run.handle import Handle
from crumb.run.language_model import LanguageModel
from crumb.run.load import load
from crumb.run.memory_plan import EngineSettings
from crumb.run.model import open_model

PROMPTS = ["a", "the sea was calm and ", "x" * 60, "the sea was calm and grey", "", "q"]


@pytest.fixture(scope="module")
def model(quantized_tiny: Path) -> Iterator[LanguageModel]:
    """Steps of few tokens, so that prompts are cut and wait for each other."""
    settings = EngineSettings(
        context_tokens=96, sequences=3, step_tokens=24, logits_rows=8, threads=2
    )
    with LanguageModel(open_model(str(quantized_tiny)).checkpoint, settings) as model:
        yield model
        assert model.engine.free_pages == model.engine._pages.count


@contextmanager
def counted(engine: Engine) -> Iterator[list[list[StepPart]]]:
    """The parts of every step that is taken inside the `with`."""
    steps: list[list[StepPart]] = []
    run = engine.run

    def counting(parts: Sequence[StepPart]) -> NDArray[np.float32]:
        steps.append(list(parts))
        return run(parts)

    engine.run = counting  # type: ignore[method-assign]
    try:
        yield steps
    finally:
        del engine.run


def ask(tokens: int, prompt: str = "ab", **settings: object) -> GenerateRequest:
    """A request of exactly so many tokens, one in a step."""
    return make_request(prompt, max_tokens=tokens, ignore_end=True, speculate=False, **settings)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.001)


def slowly(tokens: tuple[int, ...], logits: NDArray[np.float32]) -> None:
    """A hook that gives others the time to ask before its request ends."""
    assert len(tokens) < len(logits)
    time.sleep(0.01)


def requests(temperature: float = 0.0) -> list[GenerateRequest]:
    return [
        make_request(
            prompt or "b",
            max_tokens=3 + 4 * index,
            temperature=temperature,
            seed=index,
            ignore_end=True,
            logprobs=2,
        )
        for index, prompt in enumerate(PROMPTS)
    ]


def figures(generation: Generation) -> tuple[object, ...]:
    """All that must not depend on company."""
    return (
        generation.text,
        generation.tokens,
        generation.finish_reason,
        generation.logprobs,
        generation.prompt_logprobs,
    )


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_requests_together_give_what_they_give_alone(
    temperature: float, model: LanguageModel
) -> None:
    alone = [figures(model.run([request])[0]) for request in requests(temperature)]
    together = [figures(each) for each in model.run(requests(temperature))]
    assert together == alone
    backwards = [figures(each) for each in model.run(requests(temperature)[::-1])]
    assert backwards[::-1] == alone
    assert [len(tokens) for _, tokens, *_ in together] == [3, 7, 11, 15, 19, 23]


def test_logprobs_of_prompts_join_a_batch(model: LanguageModel) -> None:
    asked = [
        make_request("the sea was calm", max_tokens=count, prompt_logprobs=True, logprobs=1)
        for count in (0, 4)
    ]
    alone = [figures(model.run([request])[0]) for request in asked]
    together = model.run([*requests(), *asked])
    assert [figures(each) for each in together[-2:]] == alone
    nothing, some = together[-2:]
    assert nothing.prompt_logprobs == some.prompt_logprobs
    assert (len(nothing.tokens), len(some.tokens)) == (0, 4)
    assert some.prompt_logprobs is not None
    assert len(some.prompt_logprobs) == 16


def test_pieces_together_are_the_text_and_tell_their_request(model: LanguageModel) -> None:
    texts: dict[int, str] = {}

    def keep(index: int, piece: TextPiece) -> None:
        texts[index] = texts.get(index, "") + piece.text

    results = model.run(requests(), keep)
    assert texts == {index: result.text for index, result in enumerate(results)}


def test_two_threads_share_steps(model: LanguageModel) -> None:
    with counted(model.engine) as steps, ThreadPoolExecutor(2) as pool:
        with model.scheduler.gate:  # until both have asked
            made = [pool.submit(model.run, [ask(60, prompt)]) for prompt in ("ab", "cd")]
            eventually(lambda: len(model.scheduler._waiting) == 2)
        assert [len(each.result()[0].tokens) for each in made] == [60, 60]
    assert [len(parts) for parts in steps] == [2] * 60


def test_a_request_that_comes_later_joins_the_next_step(model: LanguageModel) -> None:
    later: list[Handle[Generation]] = []

    def at_ten(tokens: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        if len(tokens) == 10:
            assert len(logits) == 300
            later.append(model.submit(ask(60, "cd")))

    with counted(model.engine) as steps:
        assert len(model.run([ask(60, logits_hook=at_ten)])[0].tokens) == 60
        assert len(later[0].result().tokens) == 60
    assert [len(parts) for parts in steps] == [1] * 11 + [2] * 49 + [1] * 11


def test_a_list_shares_steps_without_a_word_about_sequences(quantized_tiny: Path) -> None:
    with load(quantized_tiny, context_tokens=96, threads=1) as model:
        assert model.engine.settings.sequences == 1
        with counted(model.engine) as steps:
            model.run([ask(20), ask(20), ask(20)])
    assert [len(parts) for parts in steps] == [3] * 20


def test_kinds_of_work_share_steps_and_get_what_they_get_alone(model: LanguageModel) -> None:
    text = "the sea was calm and grey"
    (score,), (vector,) = model.score([text]), model.embed([text])
    (alone,) = model.run([ask(40)])
    with counted(model.engine) as steps, ThreadPoolExecutor(3) as pool:
        made = pool.submit(model.run, [ask(40)])
        scores = pool.submit(model.score, [text] * 2)
        vectors = pool.submit(model.embed, [text] * 2)
        assert figures(made.result()[0]) == figures(alone)
        assert [each.tokens for each in scores.result()] == [score.tokens] * 2
        for each in vectors.result():
            np.testing.assert_array_equal(each.vector, vector.vector)
    assert max(map(len, steps)) > 1


@pytest.mark.parametrize("logits_rows", [1, 2, 3])
def test_nobody_waits_for_others_to_end_where_rows_are_few(
    logits_rows: int, quantized_tiny: Path
) -> None:
    settings = EngineSettings(
        context_tokens=64, sequences=9, step_tokens=32, logits_rows=logits_rows, threads=1
    )
    tokens: list[int] = [0] * 9
    lead: list[int] = []

    def piece(index: int, each: TextPiece) -> None:
        tokens[index] += len(each.tokens)
        lead.append(max(tokens) - min(tokens))

    with LanguageModel(open_model(str(quantized_tiny)).checkpoint, settings) as model:
        model.run([ask(20)] * 9, piece)
    assert tokens == [20] * 9
    # While the nine prompts end one a step, those that have ended them decode with what is left.
    assert max(lead) <= 9


def test_a_short_prompt_does_not_wait_for_a_long_one(model: LanguageModel) -> None:
    """24 rows a step: the long prompt alone would fill four steps."""
    order: list[int] = []
    model.run([ask(1, "x" * 90), ask(1, "q" * 3)], lambda index, each: order.append(index))
    assert order == [1, 0]


def test_decoding_goes_on_while_a_prompt_is_read(model: LanguageModel) -> None:
    later: list[Handle[Generation]] = []

    def at_two(tokens: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        if len(tokens) == 2:
            assert len(logits) == 300
            later.append(model.submit(ask(1, "y" * 90)))

    with counted(model.engine) as steps:
        model.run([ask(30, logits_hook=at_two)])
        later[0].result()
    reading = [parts for parts in steps if any(part.rows == Rows.NONE for part in parts)]
    assert len(reading) >= 3
    assert all(len(parts) == 2 for parts in reading)


def test_a_request_that_fails_ends_alone(model: LanguageModel) -> None:
    never = dict.fromkeys(range(300), -math.inf)
    (alone,) = model.run([ask(12)])
    good, bad, other = model.run([ask(12), ask(12, logit_bias=never), ask(12)])
    assert figures(good) == figures(other) == figures(alone)
    assert (bad.finish_reason, bad.tokens) == (FinishReason.ERROR, ())
    assert isinstance(bad.error, UsageError)
    with pytest.raises(UsageError, match="no token may be chosen"):
        model.generate("ab", logit_bias=never)
    pieces = model.stream("ab", logit_bias=never)
    assert next(pieces).finish_reason is FinishReason.ERROR
    with pytest.raises(UsageError, match="no token may be chosen"):
        next(pieces)


def test_a_step_that_fails_ends_its_requests_and_no_later_ones(model: LanguageModel) -> None:
    def failing(parts: Sequence[StepPart]) -> NDArray[np.float32]:
        raise MemoryError(f"for {len(parts)} parts")

    model.engine.run = failing  # type: ignore[method-assign]
    try:
        ended = model.run([ask(3), ask(3)])
    finally:
        del model.engine.run
    assert [each.finish_reason for each in ended] == [FinishReason.ERROR] * 2
    assert "for 2 parts" in str(ended[0].error)
    assert len(model.generate("ab", max_tokens=3, ignore_end=True).tokens) == 3


def test_a_hook_sees_the_tokens_and_decides_which_may_follow(model: LanguageModel) -> None:
    seen: list[tuple[int, ...]] = []

    def only_the_next(
        tokens: tuple[int, ...], logits: NDArray[np.float32]
    ) -> NDArray[np.bool_] | None:
        seen.append(tokens)
        allowed = np.zeros(len(logits), np.bool_)
        allowed[100 + len(tokens)] = True
        return allowed

    def by_edit(tokens: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        logits[200 + len(tokens)] = 1e9

    def by_number(tokens: tuple[int, ...], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(np.arange(len(logits)) == 150 + len(tokens), 1e9, 0).astype(np.float32)

    plain = model.run([ask(4, logprobs=0)])[0]
    masked, edited, moved, beside = model.run(
        [
            ask(4, logits_hook=only_the_next),
            ask(4, logits_hook=by_edit),
            ask(4, logits_hook=by_number),
            ask(4, logprobs=0),
        ]
    )
    assert masked.tokens == (100, 101, 102, 103)
    assert seen == [(), (100,), (100, 101), (100, 101, 102)]
    assert edited.tokens == (200, 201, 202, 203)
    assert moved.tokens == (150, 151, 152, 153)
    assert figures(beside) == figures(plain)


def test_a_hook_that_fails_or_forbids_all_fails_its_request(model: LanguageModel) -> None:
    def broken(tokens: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        raise KeyError(f"{len(tokens)} of {len(logits)}")

    failed, forbidden, misshapen = model.run(
        [
            ask(4, logits_hook=broken),
            ask(4, logits_hook=lambda tokens, logits: np.zeros(len(logits), np.bool_)),
            ask(4, logits_hook=lambda tokens, logits: np.ones(7, np.bool_)),
        ]
    )
    assert isinstance(failed.error, KeyError)
    assert "logits_hook: no token may be chosen" in str(forbidden.error)
    assert "does not fit the vocabulary" in str(misshapen.error)


def test_a_cancelled_request_ends_and_the_others_go_on(model: LanguageModel) -> None:
    alone = [figures(model.run([request])[0]) for request in requests()]

    def cancels(tokens: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        if len(tokens) == 3:
            assert len(logits) == 300
            handles[2].cancel()

    asked = requests()
    asked[2] = replace(asked[2], logits_hook=cancels)
    with model.scheduler.gate:
        handles = [model.submit(request) for request in asked]
    results = [handle.result() for handle in handles]
    assert results[2].finish_reason is FinishReason.CANCELLED
    assert results[2].tokens == alone[2][1][:4]  # type: ignore[index]
    for index in (0, 1, 3, 4, 5):
        assert figures(results[index]) == alone[index]


def test_a_request_cancelled_before_its_turn_never_runs(model: LanguageModel) -> None:
    long = ask(60, "z" * 30, logits_hook=slowly)
    first = [model.submit(long) for _ in range(3)]  # all pages of the cache
    later, watched = model.submit(ask(60)), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(model.run, [ask(60)], cancelled=watched)
        later.cancel()
        watched.set()
        for ended in (later.result(), watching.result()[0]):
            assert ended.finish_reason is FinishReason.CANCELLED
            assert ended.tokens == ()
    assert [len(handle.result().tokens) for handle in first] == [60] * 3


def test_a_reader_who_stops_frees_everything(model: LanguageModel) -> None:
    engine = model.engine
    stream = model.stream("the sea", max_tokens=80, ignore_end=True, logits_hook=slowly)
    next(stream)
    assert engine.free_pages < engine._pages.count
    stream.close()  # type: ignore[attr-defined]
    eventually(lambda: engine.free_pages == engine._pages.count)


def test_a_full_queue_refuses_and_says_so(quantized_tiny: Path) -> None:
    settings = EngineSettings(context_tokens=96, threads=1)
    checkpoint = open_model(str(quantized_tiny)).checkpoint
    with LanguageModel(checkpoint, settings, most_waiting=2) as model:
        whole = ask(90)  # the whole cache: nothing else runs beside it
        running = model.submit(replace(whole, logits_hook=slowly))
        next(running)
        waiting = [model.submit(whole) for _ in range(2)]
        with pytest.raises(QueueFull, match="as many requests wait") as caught:
            model.submit(whole)
        assert caught.value.http_status == 503
        patient = model.submit(ask(2), wait=True)
        assert len(patient.result().tokens) == 2
        assert all(handle.done for handle in (running, *waiting))


def test_closing_ends_what_runs_and_what_waits_as_cancelled(quantized_tiny: Path) -> None:
    model = load(quantized_tiny, context_tokens=96, threads=1)
    handles = [model.submit(ask(90, logits_hook=slowly)) for _ in range(3)]
    next(handles[0])
    scorer = ThreadPoolExecutor(1)
    scored = scorer.submit(model.score, ["x" * 90])
    eventually(lambda: len(model.scheduler._waiting) == 3)
    thread = model.scheduler._thread
    assert thread is not None
    model.close()
    assert not thread.is_alive()
    for handle in handles:
        assert handle.result().finish_reason is FinishReason.CANCELLED
    with pytest.raises(RequestCancelled):
        scored.result()
    scorer.shutdown()
    with pytest.raises(UsageError, match="this model is closed"):
        model.submit(ask(1))


def test_a_model_that_nobody_holds_ends_its_thread(quantized_tiny: Path) -> None:
    model = load(quantized_tiny, context_tokens=96, threads=1)
    assert model.submit(ask(3)).result().tokens
    thread = model.scheduler._thread
    assert thread is not None
    handle = model.submit(ask(30, logits_hook=slowly))
    del model
    assert len(handle.result().tokens) == 30  # a request keeps its model
    eventually(lambda: not thread.is_alive())


def test_a_generation_ends_where_the_context_does(model: LanguageModel) -> None:
    result = model.generate("y" * 90, max_tokens=None, ignore_end=True)
    assert result.finish_reason is FinishReason.LENGTH
    # 96 places; the last token need not be fed.
    assert len(result.tokens) == 96 - 90 + 1
    assert model.generate("y" * 96, ignore_end=True).completion_tokens == 1


def test_a_prompt_beyond_the_context_is_refused_before_anything_runs(model: LanguageModel) -> None:
    with counted(model.engine) as steps, pytest.raises(UsageError, match=r"at most 96.*found 97"):
        model.run([make_request("a", max_tokens=30), make_request("z" * 97)])
    assert steps == []


def test_a_cache_that_others_fill_refuses_and_frees_what_it_took(model: LanguageModel) -> None:
    engine: Engine = model.engine
    taken = [engine._pages.take() for _ in range(engine._pages.count - 2)]
    with pytest.raises(DoesNotFit, match="the cache is full"):
        model.generate("y" * 40, max_tokens=4)
    assert engine.free_pages == 2
    engine._pages.release(taken)
    assert len(model.generate("y" * 40, max_tokens=4, ignore_end=True).tokens) == 4


def test_a_cached_prompt_is_told_and_its_timings_count_what_was_computed(
    model: LanguageModel,
) -> None:
    prompt = "a prompt of more than two pages, seen twice"
    first = model.generate(prompt, max_tokens=2, ignore_end=True)
    again = model.generate(prompt, max_tokens=2, ignore_end=True)
    assert again.cached_tokens == (len(prompt) - 1) // 16 * 16 > first.cached_tokens
    assert again.tokens == first.tokens
    computed = again.timings.prompt_tokens_per_second * again.timings.prompt_seconds
    assert computed == pytest.approx(len(prompt) - again.cached_tokens)


def test_one_request_knows_how_long_it_took(model: LanguageModel) -> None:
    handle = model.submit(ask(3, "abc"))
    handle.wait()
    times = handle.times
    assert times.submitted <= times.began < times.prompt_done <= times.ended
