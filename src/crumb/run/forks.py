"""Forks of this process: no engine is in the middle of a step, and the child begins anew.

In: schedulers. Out: nothing. Before a fork all of them finish their step; in the parent they go on;
in the child each makes its locks anew, since a fork copies only the thread that asked for it.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """What forks are told to."""

    gate: threading.Lock
    stepping: threading.RLock

    def renew_after_fork(self) -> None:
        """Be as new, in a process that has only the thread of now."""
        ...


class _Forks:
    def __init__(self) -> None:
        self.guarded: WeakSet[Forkable] = WeakSet()
        self._one_at_a_time = threading.RLock()
        self._paused: list[Forkable] = []

    def pause(self) -> None:
        self._one_at_a_time.acquire()
        self._paused = list(self.guarded)
        for each in self._paused:
            each.gate.acquire()
            each.stepping.acquire()

    def resume(self) -> None:
        paused, self._paused = self._paused, []
        for each in paused:
            each.stepping.release()
            each.gate.release()
        self._one_at_a_time.release()

    def renew(self) -> None:
        paused, self._paused = self._paused, []
        self._one_at_a_time = threading.RLock()
        for each in paused:
            each.renew_after_fork()


_FORKS = _Forks()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_FORKS.pause, after_in_parent=_FORKS.resume, after_in_child=_FORKS.renew
    )


def guard_forks(forkable: Forkable) -> None:
    """Have forks wait for this one's step, as long as it exists."""
    _FORKS.guarded.add(forkable)
