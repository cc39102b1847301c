"""PackedTensor: its bytes are what the catalog promises, and broken arrays are refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.errors import CheckpointError
from crumb.formats.catalog import GROUP_SIZES, INTEGERS, ROW, ZeroKind, make_format
from crumb.formats.grid import make_parameters
from crumb.formats.layouts.tile import pack_reference, unpack_reference
from crumb.formats.packed_tensor import PackedTensor, assemble, stack_rows, stored_shape

KINDS = pytest.mark.parametrize("zero", list(ZeroKind))


def packed(format, out_features, in_features, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << format.bits, (out_features, in_features)).astype(np.uint8)
    shape = (out_features, format.groups(in_features))
    parameters = make_parameters(
        format,
        rng.uniform(0.1, 1, shape).astype(np.float32),
        rng.integers(0, 1 << format.bits, shape).astype(np.float32),
    )
    return PackedTensor(
        format, out_features, in_features, pack_reference(codes, parameters, format)
    )


def rows_of(tensor, begin, end):
    """Some rows, packed apart."""
    codes, parameters = unpack_reference(
        tensor.tiles, tensor.format, tensor.out_features, tensor.in_features
    )
    some = {
        name: None if array is None else array[begin:end]
        for name, array in vars(parameters).items()
    }
    tiles = pack_reference(codes[begin:end], type(parameters)(**some), tensor.format)
    return PackedTensor(tensor.format, end - begin, tensor.in_features, tiles)


@pytest.mark.parametrize("bits", [row.bits for row in INTEGERS.values()])
@KINDS
@settings(deadline=None, max_examples=15)
@given(
    group_size=st.sampled_from(GROUP_SIZES),
    tiles=st.integers(1, 3),
    chunks=st.integers(4, 9),
)
def test_whole_tiles_and_chunks_store_the_bits_of_the_catalog(
    bits, zero, group_size, tiles, chunks
):
    format = make_format(bits, group_size, zero)
    out_features, in_features = 16 * tiles, 32 * chunks
    tensor = packed(format, out_features, in_features)
    assert 8 * tensor.size_bytes == out_features * format.row_bits(in_features)


@KINDS
@settings(deadline=None, max_examples=15)
@given(
    group_size=st.sampled_from(GROUP_SIZES),
    out_features=st.integers(1, 40),
    beyond=st.integers(0, 150),
)
def test_padding_is_rows_to_16_and_inputs_of_a_group_to_32(zero, group_size, out_features, beyond):
    in_features = max(group_size, 1) + beyond
    format = make_format(3, group_size, zero)
    rows = 16 * -(-out_features // 16)
    inputs = 32 * -(-in_features // 32)
    # Groups are whole chunks, so only the last of a row is padded, and their count stays.
    assert format.groups(inputs) == format.groups(in_features)
    assert 8 * packed(format, out_features, in_features).size_bytes == rows * format.row_bits(
        inputs
    )


@KINDS
def test_assembling_the_stored_tiles_gives_the_tensor_back(zero):
    tensor = packed(make_format(3, 32, zero), 5, 75)
    again = assemble(tensor.format, 5, 75, tensor.tiles, "blocks.0.q")
    assert again.tiles is tensor.tiles
    assert again.tiles.shape == stored_shape(tensor.format, 5, 75)
    assert again.size_bytes == tensor.tiles.nbytes


@KINDS
@pytest.mark.parametrize(
    "damage",
    [
        lambda array: array[:-1],
        lambda array: array[:, :-1],
        lambda array: np.repeat(array, 2, axis=1),
        lambda array: array.T.copy(),
        lambda array: array.ravel(),
        lambda array: array.astype(np.float32),
        lambda array: array.view(np.int8),
    ],
)
def test_tiles_of_another_shape_or_type_are_refused_by_name(zero, damage):
    tensor = packed(make_format(3, 32, zero), 20, 75)
    with pytest.raises(CheckpointError, match=r"^blocks\.0\.q: .*follow from int3-g32.*20 x 75"):
        assemble(tensor.format, 20, 75, damage(tensor.tiles), "blocks.0.q")


def test_a_matrix_without_columns_is_refused():
    format = make_format(4, ROW, ZeroKind.FIXED)
    with pytest.raises(CheckpointError, match="without columns"):
        assemble(format, 5, 0, np.zeros((1, 0), np.uint8), "blocks.0.q")


@KINDS
def test_rows_packed_apart_stack_to_the_whole(zero):
    whole = packed(make_format(5, 32, zero), 70, 75)
    parts = [rows_of(whole, 0, 32), rows_of(whole, 32, 48), rows_of(whole, 48, 70)]
    found = stack_rows(parts)
    assert (found.out_features, found.in_features) == (70, 75)
    np.testing.assert_array_equal(found.tiles, whole.tiles)
    assert stack_rows([whole]).tiles is whole.tiles


def test_only_whole_tiles_may_have_rows_behind_them():
    whole = packed(make_format(5, 32, ZeroKind.FIXED), 70, 75)
    with pytest.raises(AssertionError, match="whole tiles"):
        stack_rows([rows_of(whole, 0, 20), rows_of(whole, 20, 70)])
