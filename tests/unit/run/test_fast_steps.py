"""The rows of run/fast_steps.py against the array executor's, on every instruction set.

In: operations on random texts, with heads, widths and lengths that no vector divides. Out: equal
buffers within a bound derived beside each comparison; u is the rounding of f32, and each side of a
comparison may be off by the bound once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crumb.kernels.dispatch import supported_sets
from crumb.operations.activation import FUNCTIONS, Activation
from crumb.operations.attention import QUERY_BLOCK, Attention
from crumb.operations.norm import Norm
from crumb.operations.operation import Context, Operation
from crumb.operations.rope import Rope
from crumb.operations.rotary import Rotary
from crumb.operations.table import row_of
from crumb.run.fast_steps import FAST_STEPS

Floats = NDArray[np.float32]

UNIT = 2.0**-24
TEXTS = 2

pytestmark = pytest.mark.parametrize("isa", supported_sets())


@pytest.fixture(autouse=True)
def chosen(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUMB_ISA", isa)


def drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def both(operation: Operation, weights: dict[str, Floats], **given: Any) -> tuple[Floats, Floats]:
    """The native output and the array executor's; what is given must stay as it is."""
    results = []
    for run in (FAST_STEPS[type(operation)], row_of(operation).reference):
        buffers = {name: array.copy() for name, array in given.items()}
        reads = tuple(buffers[name] for name in operation.reads)
        with np.errstate(invalid="ignore"):
            results += run(operation, reads, Context(weights))
        for name, array in buffers.items():
            np.testing.assert_array_equal(array, given[name])
    assert results[0].shape == results[1].shape
    assert results[0].dtype == np.float32
    return results[0], results[1]


@pytest.mark.parametrize("features", [5, 16, 70, 256])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_norm_is_the_array_executors(kind: str, biased: bool, features: int) -> None:
    weights = {"weight": drawn(features), "bias": drawn(features, seed=1)}
    operation = Norm("x", "y", kind, "weight", "bias" if biased else None, 1e-5, features)
    x = drawn(TEXTS, 7, features) + np.float32(0.5)
    native, expected = both(operation, weights, x=x)
    # A mean of n terms is off by n u of their size, and moves what is centered; the variance by
    # n u and twice that move; its root halves both; eight roundings make the rest.
    move = (features + 1) * UNIT * np.abs(x).max(-1, keepdims=True) if kind == "layer" else 0.0
    center = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    root = np.sqrt(np.square(center).mean(-1, keepdims=True) + 1e-5)
    relative = move / root + (features / 2 + 8) * UNIT
    bound = (move + np.abs(center) * relative) / root * np.abs(weights["weight"])
    bound = bound + UNIT * np.abs(weights["bias"])
    assert (np.abs(native - expected) <= 2 * bound).all()


@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_activation_is_the_array_executors(function: str, tokens: int) -> None:
    x = 4 * drawn(TEXTS, tokens, 37)
    x.ravel()[:6] = 0.0, -0.0, 60.0, -60.0, -90.0, 300.0
    native, expected = both(Activation("x", "y", function), {}, x=x)
    # native/math.inl: e^x and tanh are off by 2e-7, erf by 8e-7 of 1; silu multiplies its own
    # result by that, the others half of x; a few roundings of 6e-8 come with each.
    size = np.abs(expected) + 1e-30 if function == "silu" else np.abs(x)
    assert (np.abs(native - expected) <= (0.0 if function == "relu" else 1e-6) * size).all()


@pytest.mark.parametrize(("head_dim", "dimensions"), [(64, 64), (10, 10), (20, 6)])
@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_a_rotary_embedding_is_the_array_executors(
    style: str, head_dim: int, dimensions: int
) -> None:
    operation = Rotary("x", "positions", "y", 3, style, Rope(dimensions, 100.0))
    positions = np.broadcast_to(np.arange(9)[None], (TEXTS, 9))
    x = drawn(TEXTS, 9, 3 * head_dim)
    native, expected = both(operation, {}, x=x, positions=positions)
    np.testing.assert_array_equal(native, expected)  # the same products and sums, none fused


ATTENTION = Attention("query", "key", "value", "mixed", 6, 3, 20, 0.3, True, None, None)
LONG = QUERY_BLOCK + 5


@pytest.mark.parametrize("tokens", [1, 2, 17, LONG])
@pytest.mark.parametrize(
    "operation",
    [
        ATTENTION,
        replace(ATTENTION, key_value_heads=6),
        replace(ATTENTION, key_value_heads=1, head_dim=64, scale=0.125),
        replace(ATTENTION, window=5),
        replace(ATTENTION, window=40, soft_cap=2.0),
        replace(ATTENTION, soft_cap=3.0, state="slot"),  # without states nothing is kept
    ],
    ids=["grouped", "all heads", "one head", "window", "window and cap", "cap"],
)
def test_attention_is_the_array_executors(operation: Attention, tokens: int) -> None:
    dim, kept = operation.head_dim, operation.key_value_heads
    query = drawn(TEXTS, tokens, operation.heads * dim)
    key, value = (drawn(TEXTS, tokens, kept * dim, seed=seed) for seed in (1, 2))
    native, expected = both(operation, {}, query=query, key=key, value=value)
    # A score is a sum of d products and a scale, a cap adds its tanh; a weight is off by twice
    # that, being over a sum of such, by e^x and by the n additions of both sums.
    queries = np.abs(query).reshape(TEXTS, tokens, kept, -1, dim)
    keys = np.abs(key).reshape(TEXTS, tokens, kept, dim)
    largest = np.einsum("bthgd,bshd->bhgts", queries, keys).max()
    score = (dim + 2) * UNIT * operation.scale * largest
    score += 2e-7 * (operation.soft_cap or 0.0)
    bound = (4 * score + 2 * (tokens + 8) * UNIT + 4e-7) * np.abs(value).max()
    assert bound < 1e-3
    assert np.abs(native - expected).max() <= 2 * bound


def test_a_text_is_the_same_whatever_lies_beside_it() -> None:
    width = ATTENTION.heads * ATTENTION.head_dim
    given = {"query": drawn(3, 40, width), "key": drawn(3, 40, 60), "value": drawn(3, 40, 60)}
    together, _ = both(ATTENTION, {}, **given)
    for text in range(3):
        alone, _ = both(ATTENTION, {}, **{name: x[text : text + 1] for name, x in given.items()})
        np.testing.assert_array_equal(alone[0], together[text])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_lost(value: float) -> None:
    """The statistics of the next layer refuse it by name; so it must reach them."""
    broken = drawn(1, 20, 120)
    broken[0, 3, 7] = value
    rows = {"weight": np.ones(120, np.float32)}
    normed, _ = both(Norm("x", "y", "rms", "weight", None, 1e-5, 120), rows, x=broken)
    assert not np.isfinite(normed[0, 3]).all()
    if value != -np.inf:
        for function in FUNCTIONS:
            active, _ = both(Activation("x", "y", function), {}, x=broken)
            assert not np.isfinite(active[0, 3, 7]), function
    intact = {"query": drawn(1, 20, 120), "key": drawn(1, 20, 60), "value": drawn(1, 20, 60)}
    for name, x in intact.items():
        spoiled = x.copy()
        spoiled[0, 3, 7] = np.nan
        mixed, _ = both(ATTENTION, {}, **(intact | {name: spoiled}))
        assert not np.isfinite(mixed[0, 3]).all(), name


def test_what_is_no_whole_causal_text_goes_the_array_executors_way() -> None:
    """An encoder sees what comes after; cross attention has keys of another length; a session
    keeps what it has seen."""
    query, key, value = drawn(1, 9, 120), drawn(1, 9, 60), drawn(1, 9, 60, seed=1)
    encoder = replace(ATTENTION, causal=False)
    same = both(encoder, {}, query=query, key=key, value=value)
    np.testing.assert_array_equal(*same)
    crossed = both(encoder, {}, query=query[:, :4], key=key, value=value)
    np.testing.assert_array_equal(*crossed)
    states: dict[str, tuple[Any, ...]] = {}
    parts = []
    for begin, end in ((0, 4), (4, 9)):
        reads = tuple(array[:, begin:end] for array in (query, key, value))
        session = replace(ATTENTION, state="slot")
        parts += FAST_STEPS[Attention](session, reads, Context({}, states))
    whole, _ = both(ATTENTION, {}, query=query, key=key, value=value)
    # Scores of about 3, weights off by some u of them: far below what a lost key would change.
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-5)
