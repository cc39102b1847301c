"""The parts of a delta: rounding told plainly, decisions coded, parameters against extremes.

In: random and hand-made matrices. Out: the same codes and bits; sizes near their information; a
piece of version 1 that every later version must read alike.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_matrices import first_format

from crumb.checkpoints.delta.codes import (
    CLASSES,
    PLACES,
    Nearest,
    order_of,
    put_codes,
    round_plainly,
    take_codes,
)
from crumb.checkpoints.delta.matrix import decode_part, encode_part
from crumb.checkpoints.delta.parameters import field_types, put_parameters, suggest
from crumb.checkpoints.delta.piece import PieceReader, PieceWriter
from crumb.errors import CheckpointError
from crumb.formats.catalog import CATALOG, Format, ZeroKind, make_format, parse_format
from crumb.formats.grid import GroupParameters, encode_reference, make_parameters
from crumb.solve.scales import minmax

Floats = NDArray[np.float32]
TABLES = [first_format(name) for name, row in CATALOG.items() if row.table is not None]


def weights_of(rows: int, columns: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) / 16).astype(np.float32)


def fitted(weights: Floats, format: Format) -> GroupParameters:
    return make_parameters(format, *minmax(weights, format))


def reader_of(piece: bytes) -> PieceReader:
    return PieceReader(np.frombuffer(piece, np.uint8), "here")


@pytest.mark.parametrize("zero", ZeroKind)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_plain_rounding_is_the_references(bits: int, zero: ZeroKind) -> None:
    format, weights = make_format(bits, 32, zero), weights_of(40, 70)
    parameters = fitted(weights, format)
    nearest = round_plainly(weights, parameters, format)
    np.testing.assert_array_equal(nearest.rank, encode_reference(weights, parameters, format))


@pytest.mark.parametrize("format", TABLES, ids=lambda format: format.name)
def test_the_nearest_value_of_a_table_is_found(format: Format) -> None:
    """Against every distance; equal values, as both zeros of mxfp4, are equally near."""
    assert format.row.table is not None
    weights = weights_of(4, 256)
    shape = (4, format.blocks(256))
    scale = np.full(shape, 0.002, np.float16)
    groups = (4, format.groups(256))
    sub_scale = None if format.row.super_block is None else np.ones(groups, np.int8)
    parameters = GroupParameters(scale, sub_scale=sub_scale)
    table = np.array(format.row.table, np.float32)
    rank = round_plainly(weights, parameters, format).rank
    found = table[order_of(format)[rank]] * np.float32(scale[0, 0])
    distances = np.abs(weights[..., None] - table * np.float32(scale[0, 0]))
    # The quotient and the product round once each, 2^-24 of numbers below the largest value.
    largest = np.abs(weights).max() + np.abs(table).max() * 0.002
    np.testing.assert_allclose(
        np.abs(weights - found), distances.min(axis=-1), rtol=0, atol=largest * 2**-22
    )


@pytest.mark.parametrize("zero", ZeroKind)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_minmax_scales_are_what_the_extremes_suggest(bits: int, zero: ZeroKind) -> None:
    """Groups on both sides of 0, on one alone, and of zeros."""
    format, weights = make_format(bits, 32, zero), weights_of(16, 80)
    weights[0], weights[1], weights[2] = np.abs(weights[0]), -np.abs(weights[1]), 0
    parameters, suggested = fitted(weights, format), suggest(weights, format)
    for name, stored in vars(parameters).items():
        if stored is not None:
            np.testing.assert_array_equal(getattr(suggested, name).astype(stored.dtype), stored)


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 70),
    bits=st.sampled_from([2, 3, 5, 8]),
    seed=st.integers(0, 99),
)
def test_any_decisions_come_back(rows: int, columns: int, bits: int, seed: int) -> None:
    """Whatever the ranks, sides, leanings and codes, even those no rounding would give."""
    rng, format = np.random.default_rng(seed), make_format(bits, 0, ZeroKind.FIXED)
    shape = rows, columns
    nearest = Nearest(
        rank=rng.integers(0, 1 << bits, shape).astype(np.int16),
        toward=rng.choice(np.array([-1, 1], np.int8), shape),
        place=rng.integers(0, 2 * PLACES, shape).astype(np.uint8),
    )
    codes = rng.integers(0, 1 << bits, shape).astype(np.uint8)
    piece = PieceWriter()
    put_codes(piece, codes, nearest, format)
    reader = reader_of(piece.finished())
    np.testing.assert_array_equal(take_codes(reader, nearest, format, "here"), codes)
    reader.end()


def test_weights_and_scales_that_are_no_numbers_do_not_matter() -> None:
    """A damaged base is still the same base."""
    format, weights = make_format(3, 32, ZeroKind.FIXED), weights_of(16, 64)
    weights[0, :4] = [np.nan, np.inf, -np.inf, 3e38]
    weights[1] = np.nan
    scale = fitted(weights_of(16, 64), format).scale
    scale[2:6, 0] = [0, np.nan, np.inf, -np.inf]
    codes = np.random.default_rng(0).integers(0, 8, (16, 64)).astype(np.uint8)
    piece, _ = encode_part(weights, (codes, GroupParameters(scale)), format)
    found, parameters = decode_part(reader_of(piece), weights, format, "here")
    np.testing.assert_array_equal(found, codes)
    assert parameters.scale.tobytes() == scale.tobytes()


def simulated(rows: int, columns: int) -> tuple[Floats, NDArray[np.uint8], GroupParameters]:
    """Codes as a solver leaves them: rounding of weights that were shifted, some columns more."""
    rng, format = np.random.default_rng(1), make_format(3, 128, ZeroKind.FIXED)
    weights = weights_of(rows, columns)
    parameters = fitted(weights, format)
    spread = np.linspace(0, 0.5, columns) * parameters.group_scale().mean()
    shifted = weights + (rng.standard_normal(weights.shape) * spread).astype(np.float32)
    return weights, encode_reference(shifted, parameters, format), parameters


def test_a_frame_is_smaller_than_its_plain_difference_could_be() -> None:
    """The entropy of code minus rounding, symbol by symbol, is what no plain coder goes below."""
    weights, codes, parameters = simulated(512, 512)
    format = make_format(3, 128, ZeroKind.FIXED)
    piece, share = encode_part(weights, (codes, parameters), format)
    difference = codes.astype(int) - encode_reference(weights, parameters, format)
    assert share == np.mean(difference != 0)
    _, counts = np.unique(difference, return_counts=True)
    odds = counts / counts.sum()
    plain_bytes = -(odds * np.log2(odds)).sum() * codes.size / 8
    assert len(piece) < 0.85 * plain_bytes


def test_columns_are_classed_by_how_far_their_codes_went() -> None:
    weights, codes, parameters = simulated(512, 512)
    format = make_format(3, 128, ZeroKind.FIXED)
    piece = PieceWriter()
    put_codes(piece, codes, round_plainly(weights, parameters, format), format)
    classes = reader_of(piece.finished()).take(512).astype(int)
    assert 0 <= classes.min() < classes.max() < CLASSES
    assert classes[-128:].mean() > classes[:128].mean() + 1


@pytest.mark.parametrize("cut", range(0, 1500, 37))
def test_a_frame_cut_short_is_refused(cut: int) -> None:
    weights, codes, parameters = simulated(64, 128)
    format = make_format(3, 128, ZeroKind.FIXED)
    piece, _ = encode_part(weights, (codes, parameters), format)
    with pytest.raises(CheckpointError, match="the delta"):
        decode_part(reader_of(piece[: min(cut, len(piece) - 5)]), weights, format, "here")


GOLDEN = bytes.fromhex(
    "0000090000000000d50000b201040ae0e9003300a501009805c947f5ef5f020080082e90030000c5000090ff"
    "000000ffffffff00000000ff00ffffffff0100e57b040000b5000002840404d037a21a63e4c17108e0c47813"
    "e29070060000004d000010000001007b0a6001000015020002880f14e06d695aebd5ff5ca8eef10dbcbe2062"
    "afdd8e2e8b3d71abe7e8c1fbf2e39f39f281ad3857edd59ede89bb71f4efc58f77ce9c6837ec825bb5034fef"
    "150000004d000010000001007b0a600100006503000406c96406b0a610fb0a610fa20e20da20e20fa43060ba"
    "43064b2035821901ac29841ec80c21f441c61b4071c41f486182e80d192c80d6086506b0a6507b203187d103"
    "186d01c60fa438c17406b041ec810ca0f640630da00b43a835821941ec819003006084cf4306b7ca0c00004d"
    "000010000001007b0a600100006d0200a2051016c03d1cf3f55d70fcbf96792ee3fd2da7550ae6f056020b63"
    "5c40bfe4c3f64dbb69621b35dba0da492bd8cfcf198116ae05eb61fbc81ad345f501dad44eda0503006010f5"
    "c945acab0700004d000010000001007b0a60010000a102000fffe385fff085fff0afff95fffb21ffb21fffc7"
    "87fe385fff097ffc29fffe57ffec87fff187fff1e17fee17ffc29ff853fffc87fec87fff1cfffe3c2fff8617"
    "ffc29fffe4ffff21fff21fffc781fe3c2fff868000004d000010000001007b0a60010000d90100c5f9dbc7b7"
    "8f87f30fe3e01f17e7df9dbe7b78f8fe1e1fc7c1f9e2fcf6f9dbe7c67c7f0ffc7c1f9f17e7b7cfb7cf8fe1c7"
    "f0f83fe0fcfdcf6f9f800000050200a28405822310c059278faa3e9097048800551579d5005e15010f004d78"
    "030a073e24409ec74089970006231864f3846eb8668c84a78f80305786b394b35b6102"
)
"""What version 1 wrote of the codes below."""


def golden_matrix() -> tuple[Floats, NDArray[np.uint8]]:
    """Weights and codes from whole numbers, so that no generator can change them."""
    number = np.arange(16 * 64).reshape(16, 64)
    weights = (((number * 7919) % 1009) / np.float32(1009) - np.float32(0.5)).astype(np.float32)
    return weights, ((number * 31 + number // 64) % 8).astype(np.uint8)


def test_a_frame_of_version_1_is_read_as_it_was_written() -> None:
    weights, codes = golden_matrix()
    format = make_format(3, 32, ZeroKind.VARIABLE)
    found, parameters = decode_part(reader_of(GOLDEN), weights, format, "here")
    np.testing.assert_array_equal(found, codes)
    assert parameters.zero_point is not None
    np.testing.assert_array_equal(parameters.scale, np.full((16, 2), 0.125, np.float16))
    np.testing.assert_array_equal(parameters.zero_point, np.full((16, 2), 3, np.uint8))


PINNED = {
    "int3-g32-fixed": "bbc99d49ee325dbb",
    "int3-g32-variable": "9aabd96707771102",
    "int3-g32-minimum": "79d63de01cfee16f",
    "q3_k-g16-fixed": "4403acfd982570b0",
    "q4_k-g32-minimum": "2472f072abe85668",
    "iq4_nl-g32-fixed": "861a82328e6e3fc9",
    "mxfp4-g32-fixed": "4a21f253924b4404",
}
"""Hashes of all that both sides of a delta compute for themselves, in version 1."""


@pytest.mark.parametrize("name", PINNED)
def test_what_both_sides_compute_never_changes(name: str) -> None:
    """Another suggestion or context, and deltas that were published could not be read."""
    format, (part, _) = parse_format(name), golden_matrix()
    weights = np.tile(part, (1, 4))
    fields = {
        field: np.full((16, format.blocks(256)), 0.03, dtype)
        if dtype.kind == "f"
        else np.full((16, format.groups(256)), 3, dtype)
        for field, dtype in field_types(format).items()
    }
    parameters, piece = GroupParameters(**fields), PieceWriter()
    put_parameters(piece, parameters, weights, format)
    nearest = round_plainly(weights, parameters, format)
    total = hashlib.sha256(piece.gathered())
    for array in (nearest.rank, nearest.toward, nearest.place, order_of(format)):
        total.update(array.tobytes())
    assert total.hexdigest()[:16] == PINNED[name]
