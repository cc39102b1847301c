"""Float columns in the native engine: what decoded weights would give, for every format and set.

In: matrices of random codes with some float columns. Out: products within their roundings of those
with decoded weights, and each token's bits the same in any batch, on any number of threads; layers
of each head give the bits of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from exhaustive import EACH_FORMAT
from random_matrices import random_matrix
from small_engine import Floats, SmallEngine, moderate

from crumb.formats.catalog import Format, parse_format
from crumb.formats.float_columns import float_columns
from crumb.formats.packed_tensor import PackedTensor
from crumb.kernels.decode import decode, decode_packed_reference
from crumb.kernels.dispatch import supported_sets
from crumb.kernels.engine import grouped_rows, grouping_integers
from crumb.kernels.tile import pack_tensor

ROUNDING = 2.0**-23
BATCHES = (1, 2, 3, 5, 17)


def matrix_with_columns(format: Format, rows: int, columns: int, seed: int = 0) -> PackedTensor:
    """Random codes; the first and the last column, and two between, are floats too."""
    codes, parameters = random_matrix(format, rows, columns, seed)
    packed = pack_tensor(codes, moderate(parameters, format.bits), format)
    places = np.array([0, 5, columns // 2, columns - 1])
    weights = np.random.default_rng(seed).standard_normal((rows, len(places)))
    return replace(packed, columns=float_columns(places, weights.astype(np.float16)))


def shapes_of(format: Format) -> tuple[tuple[int, int], ...]:
    """Rows and columns that fill tiles and groups, and others."""
    return ((64, 256), (37, 256)) if format.row.super_block else ((64, 128), (37, 130))


def drawn(tokens: int, features: int) -> Floats:
    return np.random.default_rng(tokens).standard_normal((tokens, features)).astype(np.float32)


def product(
    isa: str, threads: int, x: Floats, packed: PackedTensor, exact: bool, bias: Floats | None
) -> Floats:
    """A linear layer of the engine."""
    engine = SmallEngine(isa, threads, x)
    out, to = engine.buffer(packed.out_features), -1
    if not exact:
        to = engine.activations(packed.format, packed.in_features, len(x))
        engine.native.add("quantize", input=engine.x, activations=to)
    arguments = {"input": engine.x, "activations": to, "out": out, "bias": bias, "joined": False}
    engine.native.add("linear", **arguments, matrix=engine.packed(packed))
    engine.run()
    return engine.arrays[out][:, : packed.out_features].copy()


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
@pytest.mark.parametrize("name", EACH_FORMAT)
def test_columns_add_their_part_to_the_product_of_the_codes(name: str, exact: bool) -> None:
    format = parse_format(name)
    for rows, columns in shapes_of(format):
        packed = matrix_with_columns(format, rows, columns)
        assert packed.columns is not None
        bias = drawn(rows, 1)[:, 0]
        of_columns = packed.columns.weights(rows).astype(np.float64)
        for isa in supported_sets():
            for tokens in (1, 6):
                x = drawn(tokens, columns)
                codes_alone = product(isa, 2, x, replace(packed, columns=None), exact, bias)
                together = product(isa, 2, x, packed, exact, bias)
                inputs = x[:, packed.columns.places].astype(np.float64)
                added = inputs @ of_columns.T
                size = np.abs(inputs) @ np.abs(of_columns).T + np.abs(codes_alone)
                bound = (len(of_columns.T) + 1) * ROUNDING * size
                assert (np.abs(together - (codes_alone + added)) <= bound).all(), (isa, tokens)


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
@pytest.mark.parametrize("name", ["int3-g64-fixed", "int4-row-minimum", "q4_k-g32-minimum"])
def test_a_token_has_the_same_bits_in_any_batch_and_on_any_threads(name: str, exact: bool) -> None:
    format = parse_format(name)
    packed = matrix_with_columns(format, 37, 256)
    x = drawn(max(BATCHES), 256)
    for isa in supported_sets():
        alone = np.concatenate(
            [product(isa, 1, x[t : t + 1], packed, exact, None) for t in range(len(x))]
        )
        for threads, tokens in enumerate(BATCHES, 1):
            found = product(isa, threads % 3 + 1, x[:tokens], packed, exact, None)
            np.testing.assert_array_equal(found, alone[:tokens], str((isa, threads, tokens)))


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
@pytest.mark.parametrize("width", [128, 130])
def test_heads_with_columns_give_the_bits_of_their_own_layers(width: int, exact: bool) -> None:
    """Features that fill vectors are not moved for int8 activations, but they are for columns."""
    format, heads, tokens = parse_format("int4-g32-fixed"), 2, 5
    matrices = [matrix_with_columns(format, 32, width, seed) for seed in range(heads)]
    matrices[0] = replace(matrices[0], columns=None)
    x = drawn(tokens, heads * width)
    for isa in supported_sets():
        engine, pairs = SmallEngine(isa, 2, x), heads * tokens
        rows = grouped_rows(pairs, heads)
        out = engine.buffer(heads * 32)
        engine.native.add(
            "headlinear",
            input=engine.x,
            out=out,
            matrices=[engine.packed(matrix) for matrix in matrices],
            activations=[] if exact else [engine.activations(format, width, rows)],
            groups=np.zeros(grouping_integers(pairs, heads), np.int32),
            rows=engine.buffer(width, rows),
            mixed=engine.buffer(32, rows),
        )
        engine.run()
        for head, matrix in enumerate(matrices):
            own = np.ascontiguousarray(x[:, head * width : (head + 1) * width])
            expected = product(isa, 1, own, matrix, exact, None)
            found = engine.arrays[out][:, head * 32 : (head + 1) * 32]
            np.testing.assert_array_equal(found, expected, str((isa, head)))


@pytest.mark.parametrize("name", EACH_FORMAT)
def test_decoded_weights_have_the_columns_added(name: str) -> None:
    format = parse_format(name)
    for rows, columns in shapes_of(format):
        packed = matrix_with_columns(format, rows, columns)
        assert packed.columns is not None
        alone, weights = decode(replace(packed, columns=None)), decode(packed)
        places = packed.columns.places
        np.testing.assert_array_equal(weights, decode_packed_reference(packed))
        expected = alone[:, places] + packed.columns.weights(rows).astype(np.float32)
        np.testing.assert_array_equal(weights[:, places], expected)
        others = np.setdiff1d(np.arange(columns), places)
        np.testing.assert_array_equal(weights[:, others], alone[:, others])
        assert packed.size_bytes == packed.tiles.nbytes + 4 * 4 + 4 * 16 * 2 * len(packed.tiles)
