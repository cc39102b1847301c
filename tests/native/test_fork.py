"""A process that used the native threads forks, and the child uses them too.

In: a function that the child runs. Out: what it found, within some seconds, as in the parent.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from crumb._native import NativeEngine, matmul_scratch_bytes
from crumb.kernels import threads as threads_module
from crumb.kernels.threads import parallel_map

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROWS, WIDTH, THREADS = 64, 64, 3
SECONDS = 60
"""Far more than a child takes; one that hangs is ended."""


def exit_code_of(child: Callable[[], bool]) -> int:
    """0 where the child found all well, 1 where not, a negative signal where it hung."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the subject
        pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if child() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Embedding:
    """An engine of several threads that copies the row of each token."""

    def __init__(self) -> None:
        row = -(-matmul_scratch_bytes(WIDTH) // 64) * 64
        scratch = np.zeros(THREADS * row + 64, np.uint8)
        begin = -scratch.ctypes.data % 64
        rows = scratch[begin : begin + THREADS * row].reshape(THREADS, row)
        self.engine = NativeEngine("baseline", THREADS, rows)
        self.out = np.zeros((ROWS, WIDTH), np.float32)
        table = np.repeat(np.arange(ROWS, dtype=np.float32)[:, None], WIDTH, axis=1)
        buffer = self.engine.add_buffer(self.out, WIDTH)
        matrix = self.engine.add_floats(table.view(np.uint8), WIDTH, 0)
        self.engine.add("embed", of_positions=False, out=buffer, matrix=matrix, first_row=0)

    def is_right(self, shift: int) -> bool:
        tokens = [(token + shift) % ROWS for token in range(ROWS)]
        self.engine.step([(tokens, 0, list(range(4)), 0)], 1)
        return self.out[:, 5].tolist() == tokens


def test_an_engine_steps_in_a_forked_child_and_in_its_parent_after() -> None:
    embedding = Embedding()
    assert embedding.is_right(1)
    assert exit_code_of(lambda: all(embedding.is_right(shift) for shift in range(2, 50))) == 0
    assert embedding.is_right(3)


def test_an_engine_that_steps_while_the_process_forks_steps_in_the_child() -> None:
    embedding, ended = Embedding(), threading.Event()

    def work() -> None:
        while not ended.is_set():
            embedding.engine.step([(list(range(ROWS)), 0, list(range(4)), 0)], 1)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        codes = [exit_code_of(lambda: embedding.is_right(2)) for _ in range(5)]
    finally:
        ended.set()
        worker.join()
    assert codes == [0] * 5


def test_a_forked_child_ends_an_engine_it_never_used() -> None:
    kept = [Embedding()]
    assert kept[0].is_right(1)

    def child() -> bool:
        kept.clear()
        return Embedding().is_right(4)

    assert exit_code_of(child) == 0


def test_a_child_of_a_child_steps() -> None:
    embedding = Embedding()
    assert embedding.is_right(1)

    def child() -> bool:
        return embedding.is_right(2) and exit_code_of(lambda: embedding.is_right(3)) == 0

    assert exit_code_of(child) == 0


def test_batches_are_shared_out_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "processors", lambda: 2)

    def squares() -> bool:
        return parallel_map(lambda n: n * n, range(9)) == [n * n for n in range(9)]

    assert squares()
    assert exit_code_of(squares) == 0
    assert squares()
