"""Experts in the native engine: the bits of each expert's own layers, for every format and set.

In: matrices of random codes, one format for each of an expert's layers. Out: equal bits, whatever
tokens and threads share a step; experts that no token uses are never read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from exhaustive import EACH_FORMAT
from numpy.typing import NDArray
from random_matrices import is_ragged
from small_engine import Floats, SmallEngine

from crumb.formats.catalog import Format, parse_format
from crumb.kernels.dispatch import supported_sets
from crumb.kernels.engine import grouped_rows, grouping_integers
from crumb.run.memory_plan import block_inputs

EXPERTS, USED = 5, 2


@dataclass(frozen=True)
class Layers:
    """The shapes and formats of every expert's layers."""

    wide: int
    inner: int
    formats: tuple[Format, Format, Format]  # of gate, up and down
    exact: bool = False  # f32 activations
    shares_first: bool = False  # an expert reads its token times the share

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return ((self.inner, self.wide), (self.inner, self.wide), (self.wide, self.inner))

    def bias(self, role: int, expert: int) -> Floats | None:
        """Of up and down."""
        return np.full(self.shapes[role][0], 0.1 * expert, np.float32) if role else None


def apart(isa: str, layers: Layers, x: Floats, shares: Floats, chosen: NDArray[Any]) -> Floats:
    """Each expert's layers on all tokens, one after the other; then the chosen ones' sum."""
    outputs, ones = [], np.ones_like(shares)
    for expert in range(EXPERTS):
        own = np.where(chosen == expert, shares, 0.0).sum(axis=1, keepdims=True, dtype=np.float32)
        engine = SmallEngine(isa, 1, x * own if layers.shares_first else x)
        gates, ups, y = (engine.buffer(shape[0]) for shape in layers.shapes)
        for role, (source, out) in enumerate(((engine.x, gates), (engine.x, ups), (gates, y))):
            format, shape, to = layers.formats[role], layers.shapes[role], -1
            if role == 2:
                engine.native.add("gate", input=gates, right=ups, out=gates, function="silu")
            if not layers.exact:
                to = engine.activations(format, shape[1], len(x))
                engine.native.add("quantize", input=source, activations=to)
            matrix = engine.matrix(format, *shape, seed=3 * expert + role)
            arguments = {"input": source, "activations": to, "out": out, "matrix": matrix}
            engine.native.add("linear", **arguments, bias=layers.bias(role, expert), joined=False)
        engine.run()
        outputs.append(engine.arrays[y][:, : layers.wide].copy())
    total = np.zeros_like(outputs[0])
    for token in range(len(x)):
        first, second = (
            outputs[int(chosen[token, k])][token]
            * (ones if layers.shares_first else shares)[token, k]
            for k in range(USED)
        )
        total[token] = first + second
    return total


def together(
    isa: str, threads: int, layers: Layers, x: Floats, shares: Floats, chosen: NDArray[Any]
) -> Floats:
    """The operation on some tokens."""
    engine = SmallEngine(isa, threads, x)
    few, numbers, out = engine.buffer(USED), engine.buffer(USED), engine.buffer(layers.wide)
    engine.arrays[few][:, :USED], engine.arrays[numbers][:, :USED] = shares, chosen
    pairs = USED * len(x)
    rows = grouped_rows(pairs, EXPERTS)
    read: set[tuple[int, int]] = set()
    activations, names = [], ("gate", "up", "down")
    for format, shape in zip(layers.formats, layers.shapes, strict=True):
        key = (shape[1], block_inputs(format, shape[1]))
        if not layers.exact and key not in read:
            activations.append(engine.activations(format, shape[1], rows))
            read.add(key)
    matrices = {
        name: [
            engine.matrix(layers.formats[role], *layers.shapes[role], seed=3 * expert + role)
            for expert in range(EXPERTS)
        ]
        for role, name in enumerate(names)
    }
    biases = {
        f"{name}_bias": np.stack([layers.bias(role, expert) for expert in range(EXPERTS)])
        if role
        else None
        for role, name in enumerate(names)
    }
    engine.native.add(
        "experts",
        input=engine.x,
        shares=few,
        chosen=numbers,
        out=out,
        **matrices,
        **biases,
        function="silu",
        slope=1.0,
        limit=0.0,
        shares_first=layers.shares_first,
        activations=activations,
        groups=np.zeros(grouping_integers(pairs, EXPERTS), np.int32),
        rows=engine.buffer(layers.wide, rows),
        gates=engine.buffer(layers.inner, rows),
        ups=engine.buffer(layers.inner, rows),
        mixed=engine.buffer(layers.wide, rows),
    )
    engine.run()
    return engine.arrays[out][:, : layers.wide].copy()


def some_tokens(count: int, wide: int) -> tuple[Floats, Floats, NDArray[Any]]:
    """Inputs, shares and choices: the first expert has many tokens, the last none."""
    rng = np.random.default_rng(count)
    x = rng.standard_normal((count, wide)).astype(np.float32)
    shares = rng.random((count, USED)).astype(np.float32)
    chosen = np.stack([rng.permutation([0, 1 + k % (EXPERTS - 2)]) for k in range(count)])
    return x, shares, chosen


def layers_of(name: str) -> Layers:
    """All layers of one format, or three formats with groups of different widths."""
    if name == "mixed":
        three = ("int4-g32-fixed", "int8-g64-variable", "int3-g32-minimum")
        a, b, c = (parse_format(each) for each in three)
        return Layers(100, 68, (a, b, c))
    format = parse_format(name)
    wide, inner = (130, 161) if is_ragged(format) else (256, 512)
    return Layers(wide, inner, (format, format, format))


@pytest.mark.parametrize("name", ["mixed", *EACH_FORMAT])
def test_experts_give_the_bits_of_their_own_layers(name: str) -> None:
    layers = layers_of(name)
    for tokens in (1, 3, 40):
        given = some_tokens(tokens, layers.wide)
        for isa in supported_sets():
            expected = apart(isa, layers, *given)
            assert np.isfinite(expected).all()
            for threads in (1, 3):
                found = together(isa, threads, layers, *given)
                np.testing.assert_array_equal(found, expected, str((isa, threads, tokens)))


SOME = ["mixed", "int4-g128-fixed", "q4_k-g32-minimum"]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_experts_that_read_scaled_tokens_give_the_bits_of_their_own_layers(
    name: str, exact: bool
) -> None:
    layers = replace(layers_of(name), exact=exact, shares_first=True)
    for tokens in (1, 40):
        given = some_tokens(tokens, layers.wide)
        for isa in supported_sets():
            expected = apart(isa, layers, *given)
            for threads in (1, 3):
                found = together(isa, threads, layers, *given)
                np.testing.assert_array_equal(found, expected, str((isa, threads, tokens)))


@pytest.mark.parametrize("name", SOME)
def test_experts_with_exact_activations_give_the_bits_of_their_own_layers(name: str) -> None:
    layers = replace(layers_of(name), exact=True)
    for tokens in (1, 40):
        given = some_tokens(tokens, layers.wide)
        for isa in supported_sets():
            expected = apart(isa, layers, *given)
            found = together(isa, 2, layers, *given)
            np.testing.assert_array_equal(found, expected, str((isa, tokens)))
