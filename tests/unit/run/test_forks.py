"""After a fork the child generates as the parent does, also in the middle of the parent's work.

In: the tiny checkpoint, loaded before the fork. Out: the child's text, or a refusal in a sentence.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crumb.errors import CrumbError
from crumb.requests.generate_request import make_request
from crumb.run.language_model import LanguageModel
from crumb.run.load import load

SECONDS = 60
PROMPT = "the sea was calm"

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
    pytest.mark.parametrize("threads", [1, 2]),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def in_child(work: Callable[[], bool]) -> bool:
    """Whether work() is true in a fork of this process, which must end by itself."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def text(model: LanguageModel, tokens: int = 8) -> tuple[int, ...]:
    return model.generate(PROMPT, max_tokens=tokens, ignore_end=True).tokens


def slowly(tokens: tuple[int, ...], logits: np.ndarray) -> None:
    """A hook that lets a fork come before the end."""
    assert len(tokens) < len(logits)
    time.sleep(0.01)


def test_a_child_generates_what_its_parent_does(threads: int, quantized_tiny: Path) -> None:
    with load(quantized_tiny, context_tokens=96, threads=threads) as model:
        before = text(model)
        assert in_child(lambda: text(model) == before)
        assert text(model) == before


def test_a_fork_amid_requests_leaves_them_to_the_parent(threads: int, quantized_tiny: Path) -> None:
    with load(quantized_tiny, context_tokens=96, threads=threads) as model:
        alone = text(model, 70)
        slow = make_request(PROMPT, max_tokens=70, ignore_end=True, logits_hook=slowly)
        handle = model.submit(slow)
        waiting = [
            model.submit(make_request("x" * 40, max_tokens=50, ignore_end=True)) for _ in range(3)
        ]
        next(handle)

        def child() -> bool:
            for lost in (handle, *waiting):
                with pytest.raises(CrumbError, match="forked while this request ran"):
                    lost.result(SECONDS)
            return text(model, 70) == alone and model.engine.free_pages == 6

        assert in_child(child)
        assert handle.result().tokens == alone
        assert all(len(each.result().tokens) == 50 for each in waiting)


def test_a_child_may_close_the_model_and_load_it_again(threads: int, quantized_tiny: Path) -> None:
    model = load(quantized_tiny, context_tokens=96, threads=threads)
    before = text(model)

    def child() -> bool:
        model.close()
        with load(quantized_tiny, context_tokens=96, threads=threads) as again:
            return text(again) == before

    assert in_child(child)
    assert text(model) == before
    model.close()
