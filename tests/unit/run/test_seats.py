"""Threads that share one model take turns, and a wait that could never end is refused.

In: the tiny checkpoint loaded with one or two sequences. Out: the text that each thread gets alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crumb.errors import UsageError
from crumb.run.generation import FinishReason
from crumb.run.language_model import LanguageModel, load, make_request
from crumb.run.seats import Seats

PROMPT = "the sea was calm and " * 3


@pytest.fixture(scope="module")
def model(quantized_tiny: Path) -> Iterator[LanguageModel]:
    with load(quantized_tiny, context_tokens=96, sequences=1, threads=1) as model:
        yield model


def test_threads_that_share_one_sequence_wait_for_each_other(model: LanguageModel) -> None:
    def work(number: int) -> tuple[int, ...]:
        return model.generate(f"{number} {PROMPT}", max_tokens=20, ignore_end=True).tokens

    alone = [work(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == alone
        texts = list(pool.map(lambda number: model.score([f"{number} {PROMPT}"])[0], range(6)))
    assert len({score.perplexity for score in texts}) == 6
    assert model.engine._pages.available == model.engine._pages.count


def test_a_thread_that_holds_the_only_sequence_is_told_so(model: LanguageModel) -> None:
    stream = model.stream(PROMPT, max_tokens=20, ignore_end=True)
    next(stream)
    for ask in (model.generate, lambda prompt: model.score([prompt])):
        with pytest.raises(UsageError, match="this thread itself holds all sequences"):
            ask(PROMPT)
    stream.close()  # type: ignore[attr-defined]
    assert model.generate(PROMPT, max_tokens=2, ignore_end=True).tokens


def test_a_request_cancelled_while_it_waits_ends(model: LanguageModel) -> None:
    stream = model.stream(PROMPT, max_tokens=20, ignore_end=True)
    next(stream)
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(model.run, [make_request(PROMPT)], cancelled=cancel)
        cancel.set()
        (ended,) = later.result(timeout=60)
    assert ended.finish_reason is FinishReason.CANCELLED
    assert ended.tokens == ()
    stream.close()  # type: ignore[attr-defined]


def test_a_seat_is_given_back_from_any_thread() -> None:
    seats = Seats(2)
    first, second = seats.try_take(), seats.try_take()
    assert first is not None
    assert second is not None
    assert seats.try_take() is None
    giver = threading.Thread(target=seats.give, args=(first,))
    giver.start()
    giver.join()
    assert seats.take(never) is not None


def never() -> bool:
    return False


def test_a_waiting_thread_gets_the_seat_of_another() -> None:
    seats = Seats(1)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with seats.one():
            held.set()
            go.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    looks: list[int] = []

    def look() -> bool:
        looks.append(1)
        if len(looks) == 2:
            go.set()
        return False

    waiting: Callable[[], bool] = look
    assert seats.take(waiting) is not None
    assert len(looks) >= 2, "it waited"
    other.join()
