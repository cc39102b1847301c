"""A request on its way: read its pieces, wait for its result, cancel it, ask for its error.

In: a consumer, from the scheduler what becomes of it. Out: pieces, in any thread or event loop; the
result, in as many threads as wait. Pieces that nobody has read are kept.
Only the end wakes those who wait for the result alone. One reader at a time reads the pieces.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, TypeVar

from crumb.errors import UsageError
from crumb.run.consumers import Consumer, Times
from crumb.run.generation import TextPiece
from crumb.run.page_store import StoredPages

Value = TypeVar("Value")

Sink = Callable[[TextPiece | None], None]
"""Told every piece in the scheduler's thread, and None at the end; it must be quick."""


class Handle(Generic[Value]):
    """What `submit` returns."""

    def __init__(
        self,
        consumer: Consumer[Value],
        *,
        owner: object = None,
        id: str | None = None,
        sink: Sink | None = None,
        cancelled: threading.Event | None = None,
    ) -> None:
        """`owner`: kept alive as long as this is. `sink`: takes the pieces instead of readers.

        `cancelled`: an event that any thread may set in place of a call of cancel.
        """
        self.id = id
        self.consumer, self.times = consumer, Times(time.perf_counter())
        self.error: Exception | None = None
        self.stored: StoredPages | None = None  # of the prompt's beginning, read from disk
        self._cancelled, self._event = False, cancelled
        self.on_cancel: Callable[[], None] = _nothing
        self._owner = owner
        self._pieces: deque[TextPiece] = deque()
        self._wake: Callable[[], None] | None = None
        self.sink: Sink = sink or self._keep
        self._ended = threading.Event()
        self._value: Value | None = None
        self._has_value, self._valuing = False, threading.Lock()

    def cancel(self) -> None:
        """End the request where it is, before its next token; from any thread."""
        self._cancelled = True
        self.on_cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to end where it is."""
        return self._cancelled or (self._event is not None and self._event.is_set())

    @property
    def is_watched(self) -> bool:
        """Whether it may be cancelled without a call of cancel."""
        return self._event is not None

    @property
    def done(self) -> bool:
        """Whether it has ended: finished, cancelled or failed."""
        return self._ended.is_set()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the end; whether it has come."""
        return self._ended.wait(timeout_seconds)

    def result(self, timeout_seconds: float | None = None) -> Value:
        """Wait for the result. Raises: the request's error, TimeoutError."""
        if self.wait(timeout_seconds) and self.error is not None:
            raise self.error
        value = self.outcome(timeout_seconds)
        assert value is not None, "what has no error has a value"
        return value

    def outcome(self, timeout_seconds: float | None = None) -> Value | None:
        """As result, but a request that failed gives as much as it has and raises nothing."""
        if not self.wait(timeout_seconds):
            raise TimeoutError(f"the request has not ended after {timeout_seconds} seconds")
        with self._valuing:  # whoever comes first makes it, for all
            if not self._has_value:
                self._value, self._has_value = self.consumer.value(self.times), True
        return self._value

    def __iter__(self) -> Iterator[TextPiece]:
        return self

    def __next__(self) -> TextPiece:
        """The next piece, waiting for it. The last one has a finish reason."""
        while not self._pieces:
            arrived = threading.Lock()
            arrived.acquire()
            if self._is_to_wait(arrived.release):
                arrived.acquire()
            elif not self._pieces:
                raise StopIteration
        return self._pieces.popleft()

    def __aiter__(self) -> AsyncIterator[TextPiece]:
        return self

    async def __anext__(self) -> TextPiece:
        """As __next__, for an event loop, which goes on meanwhile."""
        while not self._pieces:
            loop = asyncio.get_running_loop()
            arrived = asyncio.Event()

            def wake(
                loop: asyncio.AbstractEventLoop = loop, arrived: asyncio.Event = arrived
            ) -> None:
                try:
                    loop.call_soon_threadsafe(arrived.set)
                except RuntimeError:  # the reader's loop is closed: nobody waits
                    return

            if self._is_to_wait(wake):
                await arrived.wait()
            elif not self._pieces:
                raise StopAsyncIteration
        return self._pieces.popleft()

    def _is_to_wait(self, wake: Callable[[], None]) -> bool:
        """Have `wake` called when something arrives, unless it has by now."""
        if self.sink != self._keep:
            raise UsageError("the pieces of this request go elsewhere", do="Wait for its result")
        self._wake = wake
        # whatever arrives from here on calls it; what came before is seen now
        return not self._pieces and not self._ended.is_set()

    def _keep(self, piece: TextPiece | None) -> None:
        if piece is not None:
            self._pieces.append(piece)
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def end(self) -> None:
        """Called by the scheduler, once, when nothing follows: its times and error are set."""
        self.on_cancel = _nothing
        self._owner = self.stored = None
        self._ended.set()
        self.sink(None)

    def renew_after_fork(self) -> None:
        """In a child process: a lock may have been held by a thread that is not there."""
        self._ended, self._wake = threading.Event(), None
        self._valuing = threading.Lock()


def no_pieces(piece: TextPiece | None) -> None:
    """The sink of a request whose pieces nobody reads."""


def _nothing() -> None:
    """What is called when a request that has ended is cancelled."""
