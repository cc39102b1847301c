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
from itertools import pairwise
from typing import Any

from crumb.errors import CrumbError, QueueFull, RequestCancelled, UsageError
from crumb.run.engine import Engine, Floats, StepPart
from crumb.run.forks import guard_forks
from crumb.run.generation import TextPiece
from crumb.run.handle import Handle
from crumb.run.speculation import Speculation
from crumb.run.step_composer import Active, StepComposer

MOST_WAITING = 1024
"""Requests that may wait for their turn, where a caller does not say."""


class Scheduler:
    """The callers of one engine, and the thread that serves them."""

    def __init__(self, engine: Engine, most_waiting: int = MOST_WAITING) -> None:
        self._engine = engine
        self._most_waiting = most_waiting
        self.speculation = Speculation()
        self._composer = StepComposer(engine, self.speculation)
        self._waiting: deque[Handle[Any]] = deque()
        self._reading: list[Active] = []  # prompts, the oldest first
        self._decoding: deque[Active] = deque()  # the one that waits longest first
        self._watched: set[Handle[Any]] = set()  # nobody tells us when they are cancelled
        self._look_for_cancelled = False
        self._is_blocked = False  # the first that waits has no room until another ends
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
        if self._engine.store is not None:
            self._engine.store.close()

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
        if self._engine.store is not None:
            self._engine.store.renew_after_fork()
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
        reading = self._with_sources_read()
        if not reading and not self._decoding:
            return True
        chosen, parts = self._composer.compose(reading, self._decoding)
        try:
            logits, features = self._run(chosen, parts)
        except Exception as error:
            self._stop_all(chosen, (), error)
            return True
        self._distribute(chosen, parts, logits, features)
        return True

    def _with_sources_read(self) -> list[Active]:
        """Requests whose prompts may be read: the next sources are read first, one step of them."""
        waiting = [each for each in self._reading if each.sequence.awaits_source]
        if not waiting:
            return self._reading
        next_ones, room = waiting[:1], self._engine.settings.step_tokens
        for each, other in pairwise(waiting):
            room -= len(each.consumer.source)
            if room < len(other.consumer.source):
                break
            next_ones.append(other)
        try:
            self._engine.encode([each.sequence for each in next_ones])
        except Exception as error:
            self._stop_all(next_ones, (), error)
        return [each for each in self._reading if not each.sequence.awaits_source]

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
        engine, consumer, others = self._engine, handle.consumer, self._active()
        if others and not engine.has_room_for(consumer.source):
            return None
        prompt = consumer.prompt[: consumer.first_row + 1]
        sequence = engine.begin(prompt, source=consumer.source)
        most_pages = engine.pages_of(consumer.most_tokens)
        needed = most_pages - len(sequence.pages)
        promised = sum(each.most_pages - len(each.sequence.pages) for each in others)
        if needed + promised > engine.free_pages:
            engine.end(sequence)
            if others:
                return None
            engine.check_pages(most_pages)
        if handle.stored is not None:
            before = sequence.cached_tokens
            engine.restore(sequence, consumer.prompt, handle.stored)
            handle.times.restored_tokens = sequence.cached_tokens - before
            handle.stored = None
        handle.times.began = time.perf_counter()
        handle.times.cached_tokens = handle.times.read_tokens = sequence.cached_tokens
        return Active(handle, consumer, sequence, most_pages, sequence.cached_tokens)

    def _run(
        self, chosen: Sequence[Active], parts: Sequence[StepPart]
    ) -> tuple[Floats | None, Floats | None]:
        """The rows that leave a step: logits, features, or both, where someone reads them."""
        engine = self._engine
        reads_features = [each.consumer.reads_features for each in chosen]
        if all(reads_features):
            return None, engine.run_to_features(parts)
        begin = time.perf_counter()
        logits = engine.run(parts)
        self._composer.note(chosen, parts, time.perf_counter() - begin)
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
        for each, (_, tokens, out, _) in zip(chosen, parts, strict=True):
            begin, row = row, row + min(len(tokens), out)
            rows = features if each.consumer.reads_features else logits
            assert rows is not None, "made for someone"
            try:
                if each.read_tokens < len(each.consumer.prompt):
                    self._read(each, len(tokens), rows[begin:row])
                    if each.read_tokens < len(each.consumer.prompt) or not each.consumer.follows:
                        continue
                    begin = row - 1
                is_finished = self._decode(each, tokens, rows[begin:row])
            except Exception as error:
                self._stop(each, error)
                continue
            if is_finished:
                self._finish(each)

    def _decode(self, each: Active, tokens: Sequence[int], rows: Floats) -> bool:
        """Choose a token from each row, as long as the tokens that were run are those chosen.

        Whether the request is finished.
        """
        consumer, drafted, right = each.consumer, len(rows) - 1, 0
        try:
            while True:
                piece = consumer.advance(rows[right])
                each.handle.sink(piece)
                if piece.finish_reason is not None:
                    return True
                if right == drafted or consumer.next_token != tokens[right + 1]:
                    return False
                right += 1
        finally:
            if drafted:
                self._engine.cut(each.sequence, drafted - right)
                self.speculation.learn(consumer.speculator, drafted, right)
                each.handle.times.guesses.add(drafted, right)

    def _read(self, each: Active, tokens: int, rows: Floats) -> None:
        """A chunk of a prompt was read; at its end the request decodes, or is done."""
        each.read_tokens += tokens
        each.handle.times.read_tokens = len(each.consumer.source) or each.read_tokens
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
