"""The scheduler: one thread that owns an engine and steps the requests of all callers together.

In: handles, from any thread. Out: pieces and results on them. A step decodes a token of as many
sequences as it has rows for, in rotation, and reads chunks of prompts, for which a share is
reserved. A request begins once the cache has room for all that it may become.
An error belongs to its request. Refuses, with QueueFull, more waiting requests than it was told.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crumb.errors import CrumbError, QueueFull, RequestCancelled, UsageError
from crumb.run.consumers import Consumer
from crumb.run.engine import Engine, EngineSequence, Floats, Rows, StepPart
from crumb.run.forks import guard_forks
from crumb.run.generation import TextPiece
from crumb.run.handle import Handle

MOST_WAITING = 1024
"""Requests that may wait for their turn, where a caller does not say."""

PROMPT_SHARE = 4
"""One row in so many is kept for prompts while any are read."""


@dataclass(eq=False, slots=True)
class Active:
    """A request at work."""

    handle: Handle[Any]
    consumer: Consumer[Any]
    sequence: EngineSequence
    most_pages: int  # that it may come to hold
    read_tokens: int  # of its prompt

    @property
    def unread_tokens(self) -> int:
        return len(self.consumer.prompt) - self.read_tokens


class Scheduler:
    """The callers of one engine, and the thread that serves them."""

    def __init__(self, engine: Engine, most_waiting: int = MOST_WAITING) -> None:
        self._engine = engine
        self._most_waiting = most_waiting
        self._waiting: deque[Handle[Any]] = deque()
        self._reading: list[Active] = []  # prompts, the oldest first
        self._decoding: deque[Active] = deque()  # the one that waits longest first
        self._watched: set[Handle[Any]] = set()  # nobody tells us when they are cancelled
        self._look_for_cancelled = False
        self._is_blocked = False  # the first that waits has no room until another ends
        self._prompts_next = False  # whose turn it is where a step has a single row
        self._closing = False
        self._thread: threading.Thread | None = None
        self._make_locks()
        guard_forks(self)

    def _make_locks(self) -> None:
        self._changed = threading.Condition()  # of the queue, or closing
        self.gate = threading.Lock()  # held by a thread that is about to fork
        self.stepping = threading.RLock()  # held while anything of the engine changes

    def submit(self, *handles: Handle[Any], wait: bool = False) -> None:
        """Take requests; those of one call begin together where there is room.

        `wait` for a place in the queue where it is full. Raises: QueueFull, UsageError once closed.
        """
        with self._changed:
            for handle in handles:
                while len(self._waiting) >= self._most_waiting and wait and not self._closing:
                    self._rouse()
                    self._changed.wait()
                if self._closing:
                    raise UsageError("this model is closed")
                if len(self._waiting) >= self._most_waiting:
                    raise QueueFull(
                        "as many requests wait as this model takes",
                        expected=f"at most {self._most_waiting}",
                        do="Ask again later",
                    )
                handle.on_cancel = self._notice_cancelled
                self._look_for_cancelled |= handle.is_cancelled
                if handle.is_watched:
                    self._watched.add(handle)
                self._waiting.append(handle)
            self._rouse()

    def _rouse(self) -> None:
        """Have the thread look at the queue; who calls this holds the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="crumb", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def close(self) -> None:
        """End all requests as cancelled, and the thread."""
        with self._changed:
            self._closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def running(self) -> int:
        """Requests at work; from any thread, true for the moment."""
        return len(self._reading) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def renew_after_fork(self) -> None:
        """In a child process: the thread and the requests are the parent's."""
        lost = [*self._reading, *self._decoding]
        waiting, self._waiting = self._waiting, deque()
        self._thread = None
        self._make_locks()
        error = CrumbError(
            "the process was forked while this request ran", do="Ask again in the child process"
        )
        for handle in (*(each.handle for each in lost), *waiting):
            handle.renew_after_fork()
        self._stop_all(lost, waiting, error)

    def _notice_cancelled(self) -> None:
        self._look_for_cancelled = True

    def _work(self) -> None:
        """The thread: steps while there is work, and waits for it."""
        while not self._closing:
            with self.gate:  # a fork goes first
                pass
            with self.stepping:
                try:
                    is_idle = not self._step()
                except Exception as error:  # nobody's in particular, so everybody's
                    is_idle = False
                    self._stop_all(self._active(), self._take_waiting(), error)
            if is_idle:
                with self._changed:
                    while not self._waiting and not self._closing:
                        self._changed.wait()
        with self.stepping:
            self._stop_all(self._active(), self._take_waiting(), None)

    def _active(self) -> list[Active]:
        return [*self._reading, *self._decoding]

    def _take_waiting(self) -> deque[Handle[Any]]:
        """All that wait; they leave the queue."""
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        return waiting

    def _stop_all(
        self, active: Iterable[Active], waiting: Iterable[Handle[Any]], error: Exception | None
    ) -> None:
        """End requests with an error, or as cancelled."""
        for each in active:
            self._stop(each, error)
        for handle in waiting:
            self._end(handle, _last_piece(handle, error))

    def _step(self) -> bool:
        """One step of the engine; whether there was anything to do."""
        if self._look_for_cancelled or self._watched:
            self._end_cancelled()
        if self._waiting and not self._is_blocked:
            self._admit()
        if not self._reading and not self._decoding:
            return False
        chosen, parts = self._compose()
        try:
            logits, features = self._run(chosen, parts)
        except Exception as error:
            self._stop_all(chosen, (), error)
            return True
        self._distribute(chosen, parts, logits, features)
        return True

    def _end_cancelled(self) -> None:
        self._look_for_cancelled = False
        active = [each for each in self._active() if each.handle.is_cancelled]
        with self._changed:
            waiting = [each for each in self._waiting if each.is_cancelled]
            for handle in waiting:
                self._waiting.remove(handle)
            self._changed.notify_all()
        if active or waiting:
            self._is_blocked = False
            self._stop_all(active, waiting, None)

    def _admit(self) -> None:
        """Begin those that wait, in order, while the cache has room for the first."""
        while self._waiting:
            handle = self._waiting[0]
            try:
                active = self._begin(handle)
            except Exception as error:
                self._leave_queue()
                self._end(handle, _last_piece(handle, error))
                continue
            if active is None:
                self._is_blocked = True
                return
            self._leave_queue()
            self._reading.append(active)

    def _leave_queue(self) -> None:
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()

    def _begin(self, handle: Handle[Any]) -> Active | None:
        """A sequence for the request, if all its pages and those promised to others are there.

        Raises: DoesNotFit where no other request could make room.
        """
        engine, consumer = self._engine, handle.consumer
        sequence = engine.begin(consumer.prompt, reuse=not consumer.every_row)
        most_pages = engine.pages_of(consumer.most_tokens)
        needed = most_pages - len(sequence.pages)
        others = self._active()
        promised = sum(each.most_pages - len(each.sequence.pages) for each in others)
        if needed + promised > engine.free_pages:
            engine.end(sequence)
            if others:
                return None
            engine.check_pages(most_pages)
        handle.times.began = time.perf_counter()
        handle.times.cached_tokens = handle.times.read_tokens = sequence.cached_tokens
        return Active(handle, consumer, sequence, most_pages, sequence.cached_tokens)

    def _compose(self) -> tuple[list[Active], list[StepPart]]:
        """What the next step runs: tokens of decoding sequences, then chunks of prompts."""
        rows, rows_out = self._engine.settings.step_tokens, self._engine.logits_rows
        decoding, reading = self._decoding, self._reading
        most = min(rows, rows_out)
        if reading and decoding:
            most = self._decoding_rows(rows, rows_out)
        chosen: list[Active] = []
        if most >= len(decoding):
            chosen += decoding
        else:
            for _ in range(most):
                chosen.append(decoding[0])
                decoding.rotate(-1)
        parts = [StepPart(each.sequence, (each.consumer.next_token,)) for each in chosen]
        if reading:
            self._add_chunks(chosen, parts, rows - len(parts), rows_out - len(parts))
        return chosen, parts

    def _decoding_rows(self, rows: int, rows_out: int) -> int:
        """How many sequences may decode beside the prompts that are read."""
        if min(rows, rows_out) == 1:
            self._prompts_next = not self._prompts_next
            return 0 if self._prompts_next else 1
        unread = sum(each.unread_tokens for each in self._reading)
        for_prompts = min(unread, max(1, rows // PROMPT_SHARE))
        unread_out = sum(e.unread_tokens if e.consumer.every_row else 1 for e in self._reading)
        out_for_prompts = min(unread_out, max(1, rows_out // PROMPT_SHARE))
        return min(rows - for_prompts, rows_out - out_for_prompts)

    def _add_chunks(
        self, chosen: list[Active], parts: list[StepPart], rows: int, rows_out: int
    ) -> None:
        """Fill a step with prompts: half of its rows are the oldest's, the shortest have the rest.

        So a short prompt need not wait for a long one, and a long one for ever shorter ones.
        """
        oldest = self._reading[0]
        counts = dict.fromkeys(self._reading, 0)
        counts[oldest] = min(oldest.unread_tokens, -(-rows // 2))
        rows -= counts[oldest]
        by_length = sorted(self._reading, key=lambda each: each.unread_tokens - counts[each])
        for each in by_length:
            more = min(each.unread_tokens - counts[each], rows)
            counts[each] += more
            rows -= more
        for each, count in counts.items():
            prompt, begin = each.consumer.prompt, each.read_tokens
            out = Rows.NONE
            if each.consumer.every_row:
                count, out = min(count, rows_out), Rows.ALL
            elif count == each.unread_tokens:
                if rows_out:
                    out = Rows.LAST
                else:  # no row for its end: that comes with the next step
                    count -= 1
            if count:
                parts.append(StepPart(each.sequence, prompt[begin : begin + count], out))
                chosen.append(each)
                rows_out -= min(count, out)

    def _run(
        self, chosen: Sequence[Active], parts: Sequence[StepPart]
    ) -> tuple[Floats | None, Floats | None]:
        """The rows that leave a step: logits, features, or both, where someone reads them."""
        engine = self._engine
        reads_features = [each.consumer.reads_features for each in chosen]
        if all(reads_features):
            return None, engine.run_to_features(parts)
        logits = engine.run(parts)
        return logits, engine.features(len(logits)) if any(reads_features) else None

    def _distribute(
        self,
        chosen: Sequence[Active],
        parts: Sequence[StepPart],
        logits: Floats | None,
        features: Floats | None,
    ) -> None:
        """Hand each part's rows to its request. They are of no use after."""
        row = 0
        for each, (_, tokens, out) in zip(chosen, parts, strict=True):
            begin, row = row, row + min(len(tokens), out)
            rows = features if each.consumer.reads_features else logits
            assert rows is not None, "made for someone"
            try:
                if each.read_tokens < len(each.consumer.prompt):
                    self._read(each, len(tokens), rows[begin:row])
                    if each.read_tokens < len(each.consumer.prompt) or not each.consumer.follows:
                        continue
                piece = each.consumer.advance(rows[row - 1])
            except Exception as error:
                self._stop(each, error)
                continue
            each.handle.sink(piece)
            if piece.finish_reason is not None:
                self._finish(each)

    def _read(self, each: Active, tokens: int, rows: Floats) -> None:
        """A chunk of a prompt was read; at its end the request decodes, or is done."""
        each.read_tokens += tokens
        each.handle.times.read_tokens = each.read_tokens
        if len(rows):
            each.consumer.read(rows)
        if each.read_tokens == len(each.consumer.prompt):
            each.handle.times.prompt_done = time.perf_counter()
            if each.consumer.follows:
                self._reading.remove(each)
                self._decoding.append(each)
            else:
                self._finish(each)

    def _finish(self, each: Active, piece: TextPiece | None = None) -> None:
        """Let the sequence and its pages go, and tell the handle."""
        if each in self._decoding:
            self._decoding.remove(each)
        else:
            self._reading.remove(each)
        self._engine.end(each.sequence)
        self._is_blocked = False
        self._end(each.handle, piece)

    def _stop(self, each: Active, error: Exception | None) -> None:
        self._finish(each, _last_piece(each.handle, error))

    def _end(self, handle: Handle[Any], piece: TextPiece | None) -> None:
        self._watched.discard(handle)
        handle.times.end(time.perf_counter())
        if piece is not None:
            handle.sink(piece)
        handle.end()


def _last_piece(handle: Handle[Any], error: Exception | None) -> TextPiece | None:
    """What a request that failed, or was cancelled, still gives; its handle has the error."""
    if error is None:
        try:
            piece = handle.consumer.cancel()
        except Exception as failure:
            error = failure
        else:
            if piece is None:
                handle.error = RequestCancelled("the request was cancelled")
            return piece
    handle.error = error
    return handle.consumer.fail(error)
