"""Weights that lie on a grid are recognised with their very codes, and nothing else is."""

import ml_dtypes
import numpy as np
import pytest

from crumb.formats.catalog import CATALOG, ROW, ZeroKind, make_format
from crumb.formats.grid import GroupParameters, decode_reference
from crumb.solve.on_grid import codes_on_grid

F16 = np.dtype(np.float16)
DTYPES = [F16, np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)]


def on_grid(format, rows=6, columns=128, seed=0):
    """Codes and parameters as quantizers choose them: each group reaches its farthest code."""
    generator = np.random.default_rng(seed)
    width = format.group_width(columns)
    shape = (rows, columns // width)
    codes = generator.integers(0, format.row.largest_code + 1, (rows, columns), np.uint8)
    scale = generator.uniform(0.001, 0.01, shape).astype(np.float16)
    if format.zero is ZeroKind.FIXED:
        scale *= generator.choice(np.array([-1, 1], np.float16), shape)
        codes[:, ::width] = 0
        return codes, GroupParameters(scale)
    codes[:, ::width], codes[:, 1::width] = 0, format.row.largest_code
    if format.zero is ZeroKind.VARIABLE:
        zero_point = generator.integers(0, format.row.largest_code + 1, shape, np.uint8)
        return codes, GroupParameters(scale, zero_point=zero_point)
    minimum = generator.uniform(-0.1, 0.02, shape).astype(np.float16)
    return codes, GroupParameters(scale, minimum=minimum)


def stored(codes, parameters, format, dtype):
    return decode_reference(codes, parameters, format).astype(dtype).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zero", ZeroKind)
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, 64), (4, 32), (4, ROW), (6, 128)])
def test_codes_of_a_grid_come_back_as_they_were(bits, group_size, zero, dtype):
    format = make_format(bits, group_size, zero)
    codes, parameters = on_grid(format)
    weights = stored(codes, parameters, format, dtype)
    taken = codes_on_grid(weights, format, dtype)
    if taken is None:  # bf16 has less of a minimum than its fp16, and steps of a fine grid merge
        assert dtype == DTYPES[1]
        assert zero is ZeroKind.MINIMUM or bits == 6
        return
    assert (stored(*taken, format, dtype) == weights).all()
    if dtype != DTYPES[1]:
        assert (taken[0] == codes).all()


@pytest.mark.parametrize("zero", ZeroKind)
def test_one_weight_beside_the_grid_is_enough(zero):
    format = make_format(4, 32, zero)
    weights = stored(*on_grid(format), format, F16)
    weights[5, 77] = np.nextafter(weights[5, 77].astype(np.float16), np.float16(np.inf))
    assert codes_on_grid(weights, format, F16) is None


@pytest.mark.parametrize("zero", ZeroKind)
def test_other_weights_lie_on_no_grid(zero):
    weights = np.random.default_rng(0).normal(0, 0.02, (8, 128)).astype(F16).astype(np.float32)
    assert codes_on_grid(weights, make_format(6, 32, zero), F16) is None
    weights[3, 4] = np.nan
    assert codes_on_grid(weights, make_format(6, 32, zero), F16) is None


@pytest.mark.parametrize("zero", ZeroKind)
def test_groups_that_are_0_are_on_every_grid(zero):
    format = make_format(4, 32, zero)
    weights = stored(*on_grid(format), format, F16)
    weights[2, 32:64] = 0
    taken = codes_on_grid(weights, format, F16)
    assert taken is not None
    assert (stored(*taken, format, F16) == weights).all()


def test_what_is_not_looked_for_is_not_there():
    weights = np.zeros((4, 256), np.float32)
    for format in (CATALOG["q4_k"].only_format(), CATALOG["mxfp4"].only_format()):
        assert codes_on_grid(weights, format, F16) is None
    assert codes_on_grid(weights, make_format(8, 32, ZeroKind.FIXED), F16) is None
    assert codes_on_grid(weights[:, :100], make_format(4, 32, ZeroKind.FIXED), F16) is None
