"""Many requests of one client, some at a time, so that a long list does not fill the queue.

In: how many there are, and what submits one. Out: their handles; as one ends, the next begins.
Refuses, with QueueFull, only where not even one of them finds a place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from crumb.errors import QueueFull
from crumb.run.handle import Handle

Value = TypeVar("Value")

AT_ONCE = 32
"""Requests of one client that run or wait together."""


class Wave(Generic[Value]):
    """The requests of one call."""

    def __init__(self, count: int, submit: Callable[[int], Handle[Value]]) -> None:
        self._count, self._submit = count, submit
        self._next = 0
        self.active: dict[int, Handle[Value]] = {}

    def submit_more(self) -> None:
        """Begin as many as may be at once. Raises: QueueFull, what `submit` raises."""
        while self._next < self._count and len(self.active) < AT_ONCE:
            try:
                self.active[self._next] = self._submit(self._next)
            except QueueFull:
                if not self.active:
                    raise
                return
            self._next += 1

    def end(self, index: int) -> Handle[Any]:
        """One has ended; the next begins. Raises: as submit_more."""
        handle = self.active.pop(index)
        self.submit_more()
        return handle

    def cancel(self) -> None:
        """End all that is left; nobody reads it."""
        self._next = self._count
        for handle in self.active.values():
            if not handle.done:
                handle.cancel()
        self.active.clear()
