"""From the scheduler's thread into the event loop: what arrives wakes the loop once, not per token.

In: sinks that the scheduler calls for each piece. Out: for whoever waits, all pieces since it last
looked. A step of many sequences is one wake-up, and a reader that is late gets several tokens
together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from crumb.run.generation import TextPiece
from crumb.run.handle import Sink


class Arrivals:
    """One for each event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Callable[[], None]] = deque()
        self._is_awake = False

    def tell(self, arrived: Callable[[], None]) -> None:
        """Have something called in the loop; from any thread."""
        self._ready.append(arrived)
        if not self._is_awake:
            self._is_awake = True
            with suppress(RuntimeError):  # the loop has ended: nobody waits
                self._loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        self._is_awake = False  # what comes from here on wakes again
        while self._ready:
            self._ready.popleft()()


class Inbox:
    """The pieces of one request's sequences, in the order they came."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._pieces: deque[tuple[int, TextPiece | None]] = deque()
        self._told = False
        self._waiter: asyncio.Future[None] | None = None

    def sink(self, index: int) -> Sink:
        """What takes the pieces of one sequence; None at its end."""

        def take(piece: TextPiece | None) -> None:
            self._pieces.append((index, piece))
            if not self._told:
                self._told = True
                self._arrivals.tell(self._wake)

        return take

    def _wake(self) -> None:
        self._told = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, timeout_seconds: float | None) -> list[tuple[int, TextPiece | None]]:
        """All that has arrived, waiting for something; nothing where the time is over."""
        if not self._pieces:
            self._waiter = asyncio.get_running_loop().create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._waiter
            self._waiter = None
        arrived: list[tuple[int, TextPiece | None]] = []
        while self._pieces:
            arrived.append(self._pieces.popleft())
        return arrived
