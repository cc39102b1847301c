"""Requests that join, leave and are cancelled while others go on give the text they give alone.

In: the tiny checkpoint. Out: pieces and generations; in the end every page is free again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from crumb.errors import DoesNotFit, UsageError
from crumb.run.batch import Running, run_batch
from crumb.run.engine import Engine
from crumb.run.generation import FinishReason, GenerateRequest, Generation
from crumb.run.language_model import LanguageModel, make_request
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
        assert model.engine._pages.available == model.engine._pages.count


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

    def keep(index: int, piece: object) -> None:
        texts[index] = texts.get(index, "") + piece.text  # type: ignore[attr-defined]

    results = model.run(requests(), keep)
    assert texts == {index: result.text for index, result in enumerate(results)}


def test_a_cancelled_request_ends_and_the_others_go_on(model: LanguageModel) -> None:
    expected = [figures(model.run([request])[0]) for request in requests()]
    running = [model._running(request, Event()) for request in requests()]
    for index, piece in run_batch(model.engine, running):
        if index == 2 and piece.tokens:
            running[2].cancelled.set()
    results = [model._result(*pair) for pair in zip(requests(), running, strict=True)]
    assert results[2].finish_reason is FinishReason.CANCELLED
    assert 1 <= len(results[2].tokens) < 11
    assert results[2].tokens == expected[2][1][: len(results[2].tokens)]  # type: ignore[index]
    for index in (0, 1, 3, 4, 5):
        assert figures(results[index]) == expected[index]


def test_a_request_cancelled_before_its_turn_never_runs(model: LanguageModel) -> None:
    running = [model._running(request, Event()) for request in requests()]
    running[4].cancelled.set()
    list(run_batch(model.engine, running))
    assert running[4].read_tokens == 0
    assert running[4].state.finish_reason is FinishReason.CANCELLED


def test_a_reader_who_stops_frees_everything(model: LanguageModel) -> None:
    engine = model.engine
    pieces = run_batch(engine, [model._running(request, Event()) for request in requests()])
    for _ in range(5):
        next(pieces)
    assert engine._pages.available < engine._pages.count
    pieces.close()
    assert engine._pages.available == engine._pages.count
    stream = model.stream("the sea", max_tokens=20)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine._pages.available == engine._pages.count


def test_a_generation_ends_where_the_context_does(model: LanguageModel) -> None:
    result = model.generate("y" * 90, ignore_end=True)
    assert result.finish_reason is FinishReason.LENGTH
    # 96 places; the last token need not be fed.
    assert len(result.tokens) == 96 - 90 + 1
    assert model.generate("y" * 96, ignore_end=True).completion_tokens == 1


def test_a_prompt_beyond_the_context_is_refused_and_frees_the_others(model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="at most 96 tokens, found 97"):
        model.run([make_request("a", max_tokens=30), make_request("z" * 97)])
    assert model.engine._pages.available == model.engine._pages.count


def test_a_cache_that_others_fill_refuses_and_frees_what_it_took(model: LanguageModel) -> None:
    engine: Engine = model.engine
    taken = [engine._pages.take() for _ in range(engine._pages.count - 2)]
    with pytest.raises(DoesNotFit, match="the cache is full"):
        model.generate("y" * 40, max_tokens=4)
    assert engine._pages.available == 2
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
    running = model._running(make_request("abc", max_tokens=3, ignore_end=True), Event())
    assert isinstance(running, Running)
    list(run_batch(model.engine, [running]))
    assert running.began < running.prompt_done <= running.ended
