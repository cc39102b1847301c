"""PackedTensor: its bytes are what the catalog promises, and broken arrays are refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.errors import CheckpointError
from crumb.formats.bit_stream import pack_reference
from crumb.formats.catalog import CATALOG, GROUP_SIZES, ZeroKind, make_format
from crumb.formats.grid import make_parameters
from crumb.formats.packed_tensor import PackedTensor, assemble, stored_shapes

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
    stream = pack_reference(codes, format.bits)
    return PackedTensor(format, out_features, in_features, stream, parameters)


@pytest.mark.parametrize("bits", [row.bits for row in CATALOG.values()])
@KINDS
@settings(deadline=None, max_examples=15)
@given(
    group_size=st.sampled_from(GROUP_SIZES),
    out_features=st.integers(1, 5),
    beyond=st.integers(0, 150),
)
def test_bits_per_weight_are_the_stored_bytes(bits, zero, group_size, out_features, beyond):
    in_features = max(group_size, 1) + beyond
    format = make_format(bits, group_size, zero)
    tensor = packed(format, out_features, in_features)
    assert 8 * tensor.size_bytes == out_features * format.row_bits(in_features)
    exact = 8 * tensor.size_bytes / (out_features * in_features)
    # one division of exact integers on either side: equal up to its rounding
    assert format.bits_per_weight(in_features) == pytest.approx(exact, rel=2.0**-52, abs=0)


@KINDS
def test_assembling_the_stored_arrays_gives_the_tensor_back(zero):
    tensor = packed(make_format(3, 32, zero), 5, 75)
    again = assemble(tensor.format, 5, 75, tensor.arrays(), "blocks.0.q")
    assert {name: array.tobytes() for name, array in again.arrays().items()} == {
        name: array.tobytes() for name, array in tensor.arrays().items()
    }
    shapes = {name: (array.shape, array.dtype.name) for name, array in again.arrays().items()}
    assert shapes == stored_shapes(tensor.format, 5, 75)


STORED = [
    (zero, suffix) for zero in ZeroKind for suffix in stored_shapes(make_format(3, 32, zero), 5, 75)
]


@pytest.mark.parametrize(("zero", "suffix"), STORED)
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
def test_an_array_of_another_shape_or_type_is_refused_by_name(zero, suffix, damage):
    tensor = packed(make_format(3, 32, zero), 5, 75)
    arrays = tensor.arrays()
    arrays[suffix] = damage(arrays[suffix])
    with pytest.raises(CheckpointError, match=rf"^blocks\.0\.q\.{suffix}: "):
        assemble(tensor.format, 5, 75, arrays, "blocks.0.q")


@pytest.mark.parametrize(("zero", "suffix"), STORED)
def test_a_missing_array_is_refused_by_name(zero, suffix):
    tensor = packed(make_format(3, 32, zero), 5, 75)
    arrays = tensor.arrays()
    del arrays[suffix]
    with pytest.raises(CheckpointError, match=rf"^blocks\.0\.q\.{suffix}: .*found nothing"):
        assemble(tensor.format, 5, 75, arrays, "blocks.0.q")


@pytest.mark.parametrize(
    ("zero", "suffix"),
    [
        (ZeroKind.FIXED, "zero_point"),
        (ZeroKind.FIXED, "minimum"),
        (ZeroKind.VARIABLE, "minimum"),
        (ZeroKind.MINIMUM, "zero_point"),
    ],
)
def test_an_array_that_the_format_does_not_store_is_refused(zero, suffix):
    tensor = packed(make_format(3, 32, zero), 5, 75)
    arrays = tensor.arrays() | {suffix: np.zeros((5, 3), np.uint8)}
    with pytest.raises(CheckpointError, match=rf"^blocks\.0\.q\.{suffix}: "):
        assemble(tensor.format, 5, 75, arrays, "blocks.0.q")


def test_a_matrix_without_columns_is_refused():
    format = make_format(4, 0, ZeroKind.FIXED)
    arrays = {"codes": np.zeros((5, 0), np.uint8), "scale": np.zeros((5, 0), np.float16)}
    with pytest.raises(CheckpointError, match="without columns"):
        assemble(format, 5, 0, arrays, "blocks.0.q")
