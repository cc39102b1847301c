"""The steps of native/step_bindings.cpp refuse every wrong call with a Python error.

In: arrays of the wrong shape, dtype, order or size, and numbers out of range. Out: ValueError or
TypeError, and an output that nothing was written to. Each case changes one thing of a call that
works. What right calls compute is compared in tests/unit/run/test_fast_steps.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crumb import _native

TEXTS, TOKENS, HEADS, KEPT, DIM = 2, 5, 4, 2, 6
WIDTH = HEADS * DIM
UNTOUCHED = 7.0


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


def text(width: int = WIDTH, texts: int = TEXTS, tokens: int = TOKENS) -> np.ndarray[Any, Any]:
    return floats(texts, tokens, width)


def out() -> np.ndarray[Any, Any]:
    return np.full((TEXTS, TOKENS, WIDTH), UNTOUCHED, np.float32)


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "attention_step": lambda: {
        "query": text(),
        "key": text(KEPT * DIM),
        "value": text(KEPT * DIM),
        "out": out(),
        "heads": HEADS,
        "key_value_heads": KEPT,
        "scale": 0.5,
        "soft_cap": 0.0,
        "window": 0,
    },
    "norm_step": lambda: {
        "x": text(),
        "out": out(),
        "weight": floats(WIDTH),
        "bias": floats(WIDTH),
        "epsilon": 1e-5,
        "centered": True,
    },
    "activation_step": lambda: {"x": text(), "out": out(), "function": 0, "number": 0.0},
    "rotary_step": lambda: {
        "x": text(),
        "out": out(),
        "turns": floats(TOKENS, 4),
        "heads": HEADS,
        "interleaved": False,
    },
}

LESS = KEPT * DIM - 1

WRONG_SIZES: list[tuple[str, dict[str, Any]]] = [
    ("attention_step", {"heads": 0}),
    ("attention_step", {"heads": -4}),
    ("attention_step", {"heads": 5}),
    ("attention_step", {"heads": 2**31 - 1}),
    ("attention_step", {"key_value_heads": 0}),
    ("attention_step", {"key_value_heads": 3}),
    ("attention_step", {"key_value_heads": 4}),
    ("attention_step", {"query": text(texts=3)}),
    ("attention_step", {"query": text(tokens=4)}),
    ("attention_step", {"query": text(0), "out": text(0)}),
    ("attention_step", {"key": text(LESS)}),
    ("attention_step", {"key": text(LESS), "value": text(LESS)}),
    ("attention_step", {"key": text(12, tokens=4), "value": text(12, tokens=4)}),
    ("attention_step", {"key": text(12, texts=1), "value": text(12, texts=1)}),
    ("attention_step", {"value": text(12, tokens=6)}),
    ("attention_step", {"window": -1}),
    ("attention_step", {"soft_cap": -1.0}),
    ("attention_step", {"soft_cap": float("nan")}),
    ("attention_step", {"isa": "vax"}),
    ("norm_step", {"x": text(WIDTH - 1)}),
    ("norm_step", {"x": text(0), "out": text(0), "weight": floats(0), "bias": None}),
    ("norm_step", {"weight": floats(WIDTH - 1)}),
    ("norm_step", {"bias": floats(WIDTH + 1)}),
    ("norm_step", {"isa": ""}),
    ("activation_step", {"x": text(tokens=4)}),
    ("activation_step", {"function": -1}),
    ("activation_step", {"function": 4}),
    ("activation_step", {"function": 16}),
    ("activation_step", {"function": 9, "number": 0.0}),
    ("activation_step", {"function": 10, "number": -1.0}),
    ("activation_step", {"isa": "AVX2"}),
    ("rotary_step", {"x": text(WIDTH + HEADS)}),
    ("rotary_step", {"heads": 0}),
    ("rotary_step", {"heads": 5}),
    ("rotary_step", {"turns": floats(TOKENS - 1, 4)}),
    ("rotary_step", {"turns": floats(TOKENS, 3)}),
    ("rotary_step", {"turns": floats(TOKENS, 0)}),
    ("rotary_step", {"turns": floats(TOKENS, DIM + 2)}),
    ("rotary_step", {"isa": "none"}),
]


def call(name: str, **arguments: Any) -> None:
    getattr(_native, name)(**({"isa": "baseline"} | CALLS[name]() | arguments))


@pytest.mark.parametrize("name", CALLS)
def test_the_call_that_the_others_change_works(name: str) -> None:
    written = out()
    call(name, out=written)
    assert (written != UNTOUCHED).all()


@pytest.mark.parametrize(("name", "wrong"), WRONG_SIZES)
def test_sizes_that_disagree_are_refused(name: str, wrong: dict[str, Any]) -> None:
    written = wrong.get("out", out())
    before = written.copy()
    with pytest.raises(ValueError, match=r".+"):
        call(name, **({"out": written} | wrong))
    np.testing.assert_array_equal(written, before)


@pytest.mark.parametrize("name", CALLS)
def test_other_dtypes_orders_and_dimensions_are_refused(name: str) -> None:
    arrays = {word: value for word, value in CALLS[name]().items() if hasattr(value, "dtype")}
    for word, array in arrays.items():
        wide = np.repeat(array, 2, axis=-1)
        for wrong in (array.astype(np.float64), wide[..., ::2], array[None], array.tolist(), None):
            if wrong is None and word == "bias":
                continue
            with pytest.raises(TypeError):
                call(name, **{word: wrong})


@pytest.mark.parametrize("name", CALLS)
def test_an_output_that_cannot_be_written_is_refused(name: str) -> None:
    fixed = out()
    fixed.setflags(write=False)
    with pytest.raises(TypeError):
        call(name, out=fixed)


@pytest.mark.parametrize("name", CALLS)
def test_no_tokens_are_no_work(name: str) -> None:
    arguments = {
        word: value[:, :0].copy() if value.ndim == 3 else value
        for word, value in CALLS[name]().items()
        if hasattr(value, "ndim")
    }
    if "turns" in arguments:
        arguments["turns"] = arguments["turns"][:0].copy()
    call(name, **arguments)
