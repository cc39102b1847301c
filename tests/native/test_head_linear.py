"""HeadLinear in the native engine: the bits of each head's own layer, for every format and set.

In: matrices of random codes, one for each head. Out: equal bits, whatever tokens and threads share
a step, and whether widths fill vectors (features stay where they are) or do not (rows are moved).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from exhaustive import EACH_FORMAT
from random_matrices import is_ragged
from small_engine import Floats, SmallEngine

from crumb.formats.catalog import Format, parse_format
from crumb.kernels.dispatch import supported_sets
from crumb.kernels.engine import grouped_rows, grouping_integers
from crumb.run.memory_plan import block_inputs

HEADS = 3


@dataclass(frozen=True)
class Heads:
    """The format of all heads, or of one each, and the shape of their matrices."""

    formats: tuple[Format, ...]
    in_features: int
    out_features: int
    exact: bool = False  # f32 activations

    def matrix(self, engine: SmallEngine, head: int) -> int:
        shape = self.out_features, self.in_features
        return engine.matrix(self.formats[head % len(self.formats)], *shape, seed=head)


def apart(isa: str, heads: Heads, x: Floats) -> Floats:
    """Each head's layer on its own features."""
    outputs = []
    for head in range(HEADS):
        begin = head * heads.in_features
        engine = SmallEngine(isa, 1, x[:, begin : begin + heads.in_features])
        out, to = engine.buffer(heads.out_features), -1
        if not heads.exact:
            format = heads.formats[head % len(heads.formats)]
            to = engine.activations(format, heads.in_features, len(x))
            engine.native.add("quantize", input=engine.x, activations=to)
        arguments = {"input": engine.x, "activations": to, "out": out}
        matrix = heads.matrix(engine, head)
        engine.native.add("linear", **arguments, matrix=matrix, bias=None, joined=False)
        engine.run()
        outputs.append(engine.arrays[out][:, : heads.out_features].copy())
    return np.concatenate(outputs, axis=1)


def together(isa: str, threads: int, heads: Heads, x: Floats) -> Floats:
    """The operation on some tokens."""
    engine = SmallEngine(isa, threads, x)
    out, pairs = engine.buffer(HEADS * heads.out_features), HEADS * len(x)
    rows = grouped_rows(pairs, HEADS)
    blocks = {block_inputs(each, heads.in_features): each for each in heads.formats}
    engine.native.add(
        "headlinear",
        input=engine.x,
        out=out,
        matrices=[heads.matrix(engine, head) for head in range(HEADS)],
        activations=[]
        if heads.exact
        else [engine.activations(each, heads.in_features, rows) for each in blocks.values()],
        groups=np.zeros(grouping_integers(pairs, HEADS), np.int32),
        rows=engine.buffer(heads.in_features, rows),
        mixed=engine.buffer(heads.out_features, rows),
    )
    engine.run()
    return engine.arrays[out][:, : HEADS * heads.out_features].copy()


def shapes_of(format: Format) -> tuple[tuple[int, int], ...]:
    """Widths that fill vectors, and others where the format has them."""
    if is_ragged(format):
        return (128, 64), (130, 37)
    return (256, 64), (256, 37)


def check(heads: Heads, tokens: int, threads: int) -> None:
    x = np.random.default_rng(tokens).standard_normal((tokens, HEADS * heads.in_features))
    x = x.astype(np.float32)
    for isa in supported_sets():
        expected = apart(isa, heads, x)
        assert np.isfinite(expected).all()
        found = together(isa, threads, heads, x)
        np.testing.assert_array_equal(found, expected, str((isa, threads, tokens, heads)))


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
@pytest.mark.parametrize("name", EACH_FORMAT)
def test_heads_give_the_bits_of_their_own_layers(name: str, exact: bool) -> None:
    format = parse_format(name)
    for shape in shapes_of(format):
        for tokens, threads in ((1, 1), (21, 3)):
            check(Heads((format,), *shape, exact), tokens, threads)


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_heads_of_several_formats_give_the_bits_of_their_own_layers(exact: bool) -> None:
    """Groups of different widths: activations are cut into blocks in two ways."""
    names = ("int4-g32-fixed", "int8-g64-variable", "int3-g128-minimum")
    formats = tuple(parse_format(each) for each in names)
    for shape in ((128, 64), (130, 37)):
        for tokens, threads in ((1, 3), (3, 2), (40, 1), (40, 3)):
            check(Heads(formats, *shape, exact), tokens, threads)
