"""Seats: how many sequences of one engine run at once, whoever asks for them.

In: threads that want to run a sequence. Out: a seat each, given in turn; a thread waits while
others hold them all. Refuses, with UsageError, a wait that could never end: when every seat is
held by the very thread that asks for another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crumb.errors import UsageError

LOOK_SECONDS = 0.05
"""How often a waiting thread looks whether its request was cancelled."""


class Seats:
    """The seats of one engine."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._holders: list[int] = []  # threads, one entry for each seat they hold
        self._changed = threading.Condition()

    def try_take(self) -> int | None:
        """A seat for this thread if one is free; what `give` takes."""
        me = threading.get_ident()
        with self._changed:
            if len(self._holders) >= self.count:
                return None
            self._holders.append(me)
            return me

    def take(self, cancelled: Callable[[], bool] = lambda: False) -> int | None:
        """A seat for this thread, waiting for one; None once cancelled. Raises: UsageError."""
        while True:
            seat = self.try_take()
            if seat is not None or cancelled():
                return seat
            with self._changed:
                if self._holders and set(self._holders) == {threading.get_ident()}:
                    raise UsageError(
                        "this thread itself holds all sequences of the model",
                        expected="an earlier stream read to its end, or closed",
                        found=f"{self.count} at work",
                        do="Finish it, close it, or load the model with more sequences",
                    )
                self._changed.wait(LOOK_SECONDS)

    def give(self, seat: int) -> None:
        """Give a seat back, from any thread."""
        with self._changed:
            self._holders.remove(seat)
            self._changed.notify_all()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A seat for the time of a `with`. Raises: UsageError."""
        seat = self.take()
        assert seat is not None, "nobody cancels it"
        try:
            yield
        finally:
            self.give(seat)
