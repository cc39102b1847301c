"""Continuous batching: requests join and leave while others go on, one engine step at a time.

In: an Engine, TextStates with their prompts. Out: Pieces, as (which request, piece) pairs.
Each step decodes one token of every running sequence and fills its other rows with prompt chunks.
Cancelling a request takes effect before the next step. Refuses what the engine refuses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crumb.run.engine import Engine, Part, Wanted
from crumb.run.engine import Sequence as EngineSequence
from crumb.run.generation import Piece, TextState, Timings

Floats = NDArray[np.float32]


@dataclass(eq=False, slots=True)
class Running:
    """One request at work."""

    state: TextState
    prompt: Sequence[int]
    keep_logits: bool = False  # of every token of the prompt, for its logprobs
    sequence: EngineSequence | None = None
    seat: int | None = None
    read_tokens: int = 0  # of the prompt
    prompt_logits: list[Floats] = field(default_factory=list)
    began: float = 0.0
    prompt_done: float = 0.0
    ended: float = 0.0
    cached_tokens: int = 0
    index: int = 0  # among the requests of its batch
    cancelled: threading.Event = field(default_factory=threading.Event)  # any thread may set it

    @property
    def reading(self) -> bool:
        return self.read_tokens < len(self.prompt)

    def timings(self) -> Timings:
        """Speeds of what was really computed."""
        prompt_seconds = self.prompt_done - self.began
        decode_seconds = self.ended - self.prompt_done
        computed = len(self.prompt) - self.cached_tokens
        return Timings(
            prompt_seconds,
            decode_seconds,
            computed / prompt_seconds if prompt_seconds > 0 else 0.0,
            max(self.state.generated_tokens - 1, 0) / decode_seconds if decode_seconds > 0 else 0.0,
        )


def run_batch(engine: Engine, requests: Sequence[Running]) -> Iterator[tuple[int, Piece]]:
    """Pieces of all requests until each is finished.

    As many run at once as the engine has seats free; the others wait for their turn, in order,
    and all of them while other threads hold every seat. A reader who stops early ends all of them.
    """
    for index, request in enumerate(requests):
        request.index = index
    waiting = list(requests)[::-1]
    active: list[Running] = []
    try:
        while waiting or active:
            while waiting and _seated(engine, waiting[-1], wait=not active):
                active.append(waiting.pop())
                _begin(engine, active[-1])
            for request in active.copy():
                cancelled = request.cancelled.is_set()
                if cancelled and request.state.finish_reason is None:
                    yield request.index, request.state.cancel()
                wanted = request.keep_logits and request.reading and not cancelled
                if request.state.finish_reason is not None and not wanted:
                    _end(engine, request)
                    active.remove(request)
            if active:
                chosen, parts = _next_parts(engine, active)
                with engine.turn:
                    pieces = _advance(chosen, parts, engine.run(parts))
                yield from pieces
    finally:
        for request in active:
            _end(engine, request)


def _seated(engine: Engine, request: Running, wait: bool) -> bool:
    """Whether a request may begin: it has a seat, or is cancelled and needs none."""
    seats = engine.seats
    request.seat = seats.take(request.cancelled.is_set) if wait else seats.try_take()
    return request.seat is not None or request.cancelled.is_set()


def _begin(engine: Engine, request: Running) -> None:
    request.began = request.prompt_done = request.ended = time.perf_counter()
    request.sequence = engine.begin(request.prompt, reuse=not request.keep_logits)
    request.read_tokens = request.cached_tokens = request.sequence.cached_tokens


def _end(engine: Engine, request: Running) -> None:
    if request.sequence is not None:
        engine.end(request.sequence)
        request.sequence = None
    if request.seat is not None:
        engine.seats.give(request.seat)
        request.seat = None


def _next_parts(engine: Engine, active: Sequence[Running]) -> tuple[list[Running], list[Part]]:
    """What the next step runs: a token of each decoding sequence, then chunks of prompts."""
    chosen: list[Running] = []
    parts: list[Part] = []
    reading: list[Running] = []
    rows, logits_rows = engine.settings.step_tokens, engine.logits_rows
    for request in active:
        if request.reading:
            reading.append(request)
        elif rows and logits_rows:
            assert request.sequence is not None, "it has begun"
            parts.append(Part(request.sequence, (request.state.next_token,)))
            chosen.append(request)
            rows, logits_rows = rows - 1, logits_rows - 1
    for request in reading:
        assert request.sequence is not None, "it has begun"
        count = min(rows, len(request.prompt) - request.read_tokens)
        if request.keep_logits:
            count = min(count, logits_rows)
        ends = request.read_tokens + count == len(request.prompt)
        wanted = Wanted.ALL if request.keep_logits else Wanted.LAST if ends else Wanted.NONE
        needed = min(count, wanted)
        if count == 0 or needed > logits_rows:
            continue
        tokens = request.prompt[request.read_tokens : request.read_tokens + count]
        parts.append(Part(request.sequence, tokens, wanted))
        chosen.append(request)
        rows, logits_rows = rows - count, logits_rows - needed
    return chosen, parts


def _advance(
    chosen: Sequence[Running], parts: Sequence[Part], logits: Floats
) -> list[tuple[int, Piece]]:
    """Hand each part's logits to its request. The views are of no use after."""
    now = time.perf_counter()
    row = 0
    pieces: list[tuple[int, Piece]] = []
    for request, (_, tokens, wanted) in zip(chosen, parts, strict=True):
        begin, row = row, row + min(len(tokens), wanted)
        if request.reading:
            request.read_tokens += len(tokens)
            if request.keep_logits:
                request.prompt_logits.append(logits[begin:row].copy())
            if request.reading:
                continue
            request.prompt_done = now
        if request.state.finish_reason is None:
            pieces.append((request.index, request.state.advance(logits[row - 1])))
        request.ended = time.perf_counter()
    return pieces
