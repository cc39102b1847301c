"""Map over batches: one worker a processor, each with a single BLAS thread.

In: a function and its items. Out: results in the order of the items, whatever the thread count.
Elementwise steps of NumPy run on one thread, so whole batches are what can share processors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from crumb.kernels.dispatch import processors

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_batches(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[function(item) for item in items], on all processors. The first error is raised."""
    with threadpool_limits(1), ThreadPoolExecutor(processors()) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
