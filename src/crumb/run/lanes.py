"""Lanes: engines side by side, each at work on a text of its own.

In: what makes a lane's engines, the memory of a lane, how many items there are. Out: a function of
every item, in order, whichever lane it ran in. Engines of one thread never wait for each other, so
they share a busy machine; what one lane computes does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Generic, TypeVar

from crumb.kernels.threads import parallel_map
from crumb.machine.processors import processors

Engines = TypeVar("Engines")
Item = TypeVar("Item")
Result = TypeVar("Result")

LANES_BYTES = 1 << 30
"""Most bytes that the lanes beyond the first may take together."""


def lane_count(bytes_of_lane: int, items: int) -> int:
    """How many items are at work at once: one a processor, if memory allows."""
    return max(1, min(processors(), items, LANES_BYTES // bytes_of_lane))


class Lanes(Generic[Engines]):
    """A few sets of engines. `make` is told how many threads its engines may have."""

    def __init__(self, make: Callable[[int], Engines], bytes_of_lane: int, items: int) -> None:
        count = lane_count(bytes_of_lane, items)
        # Few lanes of a large machine share its processors.
        self.all = [make(processors() // count) for _ in range(count)]
        self._free: SimpleQueue[Engines] = SimpleQueue()
        for engines in self.all:
            self._free.put(engines)

    def map(
        self,
        function: Callable[[Engines, Item], Result],
        items: Iterable[Item],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Result]:
        """[function(a free lane, item) for item in items]; progress(done) is told of the first."""

        def one(item: Item) -> Result:
            engines = self._free.get()
            try:
                return function(engines, item)
            finally:
                self._free.put(engines)

        return parallel_map(one, items, progress)
