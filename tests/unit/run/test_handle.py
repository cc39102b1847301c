"""A handle: pieces in threads and event loops, the result for as many as wait, cancelling.

In: the tiny checkpoint. Out: what each way of waiting gives, and that the others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from crumb.errors import RequestCancelled, UsageError
from crumb.requests.generate_request import GenerateRequest, make_request
from crumb.requests.reading_request import EmbedRequest, ScoreRequest
from crumb.run.generation import FinishReason
from crumb.run.handle import no_pieces
from crumb.run.language_model import LanguageModel
from crumb.run.load import load


@pytest.fixture(scope="module")
def model(quantized_tiny: Path) -> Iterator[LanguageModel]:
    with load(quantized_tiny, context_tokens=96, sequences=2, threads=1) as model:
        yield model


def ask(tokens: int = 12, prompt: str = "the sea ", **settings: object) -> GenerateRequest:
    return make_request(prompt, max_tokens=tokens, ignore_end=True, **settings)


def test_the_pieces_are_the_text_however_late_they_are_read(model: LanguageModel) -> None:
    handle = model.submit(ask(), id="first")
    generation = handle.result()
    pieces = list(handle)
    assert "".join(piece.text for piece in pieces) == generation.text
    assert [piece.finish_reason for piece in pieces] == [None] * 11 + [FinishReason.LENGTH]
    assert list(handle) == []
    assert (handle.id, handle.done, handle.error) == ("first", True, None)


def test_a_result_is_one_object_for_all_who_wait(model: LanguageModel) -> None:
    for _ in range(10):
        handle = model.submit(ask(4))
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _, handle=handle: handle.result(), range(4)))
        assert {id(result) for result in results} == {id(handle.result())}


def test_event_loops_read_many_requests_at_once(model: LanguageModel) -> None:
    alone = [model.run([ask(20, prompt)])[0].text for prompt in ("ab", "cd", "ef")]

    async def read(prompt: str) -> str:
        return "".join([piece.text async for piece in model.submit(ask(20, prompt))])

    async def read_all() -> list[str]:
        return await asyncio.gather(*(read(prompt) for prompt in ("ab", "cd", "ef")))

    assert asyncio.run(read_all()) == alone


def test_an_event_loop_that_ends_early_disturbs_nobody(model: LanguageModel) -> None:
    async def first() -> object:
        return await anext(aiter(handle))

    handle = model.submit(ask(80))
    asyncio.run(first())
    assert len(handle.result().tokens) == 80
    assert len(list(handle)) == 79


def test_waiting_has_an_end(model: LanguageModel) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(tokens: tuple[int, ...], logits: np.ndarray) -> None:
        assert len(logits) > len(tokens)
        entered.set()
        leave.wait(60)

    handle = model.submit(ask(2, logits_hook=hold))
    entered.wait(60)
    assert not handle.wait(0.01)
    with pytest.raises(TimeoutError, match=r"has not ended after 0\.01 seconds"):
        handle.result(0.01)
    leave.set()
    assert len(handle.result().tokens) == 2


def test_cancelling_takes_effect_before_the_next_token(model: LanguageModel) -> None:
    def cancels(tokens: tuple[int, ...], logits: np.ndarray) -> None:
        if len(tokens) == 3:
            assert len(logits) == 300
            handle.cancel()

    handle = model.submit(ask(80, logits_hook=cancels))
    reasons = [piece.finish_reason for piece in handle]
    assert reasons == [None] * 4 + [FinishReason.CANCELLED]
    handle.cancel()  # once more is nothing
    assert len(handle.result().tokens) == 4


def test_the_pieces_of_a_result_alone_are_nobodys(model: LanguageModel) -> None:
    pieces: list[object] = []
    (generation,) = model.run([ask(3)], lambda index, piece: pieces.append((index, piece)))
    assert len(pieces) == len(generation.tokens)
    handle = model._handle(model._consumer(EmbedRequest("abc")), no_pieces)
    with pytest.raises(UsageError, match="go elsewhere"):
        next(handle)


def test_every_kind_of_request_has_a_handle(model: LanguageModel) -> None:
    text = "the sea was calm"
    scored = model.submit(ScoreRequest(text, top=2), id="a score")
    embedded = model.submit(EmbedRequest(model.tokenizer.encode(text)))
    assert scored.result().tokens == model.score(text, top=2).tokens
    np.testing.assert_array_equal(embedded.result().vector, model.embed(text).vector)
    assert (list(scored), list(embedded)) == ([], [])  # no pieces
    with model.scheduler.gate:
        cancelled = model.submit(ScoreRequest(text))
        cancelled.cancel()
    with pytest.raises(RequestCancelled, match="was cancelled"):
        cancelled.result()
    with pytest.raises(UsageError, match=r"not a request \(expected one of GenerateRequest, Score"):
        model.submit("text")  # type: ignore[call-overload]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that starts tests in the background has the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_cancels_what_was_asked(model: LanguageModel) -> None:
    main = threading.get_ident()

    def interrupts(tokens: tuple[int, ...], logits: np.ndarray) -> None:
        if len(tokens) == 5:
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.01 if len(tokens) < len(logits) else 0)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        model.run([ask(85, logits_hook=interrupts)])
    assert time.monotonic() - begin < 60
    while model.engine.free_pages < model.engine._pages.count:
        assert time.monotonic() - begin < 60
        time.sleep(0.001)
