"""Threads: one pool for the process, one BLAS thread in each worker.

In: a function and its items, or a number of rows. Out: results in order, whatever the thread count.
Elementwise steps of NumPy run on one thread and several BLAS threads get in each other's way on a
busy machine, so whole batches and slices of rows share the processors; results do not depend on
how many there are. A call from inside a worker runs where it stands.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from crumb.machine.processors import processors

Item = TypeVar("Item")
Result = TypeVar("Result")

ROWS_PER_LANE_SET = 16
"""Rows that travel together in a kernel; threads split at multiples of it."""

_worker = threading.local()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(processors(), initializer=_mark_worker)


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def _mark_worker() -> None:
    _worker.inside = True


@contextmanager
def single_blas() -> Iterator[None]:
    """One BLAS thread while inside: its bits then do not depend on the processors either."""
    if getattr(_worker, "inside", False):
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """[function(item) for item in items], on all processors. The first error is raised.

    progress(done) is told by the calling thread how many of the first items are done.
    """
    queue = list(items)
    results: list[Result] = []

    def append(result: Result) -> None:
        results.append(result)
        progress(len(results))

    if getattr(_worker, "inside", False) or len(queue) <= 1 or processors() <= 1:
        with single_blas():
            for item in queue:
                append(function(item))
            return results
    with single_blas():
        futures = [_pool().submit(function, item) for item in queue]
        try:
            for future in futures:
                append(future.result())
            return results
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            raise


def over_rows(rows: int, work: Callable[[slice], None]) -> None:
    """Call work on slices that cover all rows, one slice a processor. Rows must be independent."""
    if getattr(_worker, "inside", False):
        work(slice(0, rows))
        return
    per_thread = max(1, -(-rows // processors()))
    per_thread = -(-per_thread // ROWS_PER_LANE_SET) * ROWS_PER_LANE_SET
    starts = range(0, rows, per_thread)
    parallel_map(work, [slice(begin, min(begin + per_thread, rows)) for begin in starts])
