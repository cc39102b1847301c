"""The native search of scales against its slow twin, bit for bit, on every instruction set.

The twin is slow, so most cases try five shrink factors and each expected result is kept.
"""

from functools import cache

import numpy as np
import pytest

from crumb.formats.catalog import CATALOG, INTEGERS, ROW, ZeroKind, format_of_row, make_format
from crumb.kernels import dispatch, grid_search
from crumb.kernels import threads as threads_module
from crumb.kernels.grid_search import SHRINKS, grid_search_reference

ISA = pytest.mark.parametrize("isa", dispatch.supported_sets())
KINDS = pytest.mark.parametrize("zero", list(ZeroKind))
ROWS = (1, 15, 16, 17, 33)
FEW = SHRINKS[::9].copy()


def random_layer(rows, columns):
    rng = np.random.default_rng([rows, columns])
    weights = rng.standard_t(4, (rows, columns)).astype(np.float32)
    importance = (10.0 ** rng.uniform(-3, 2, columns)).astype(np.float32)
    return weights, importance


def extreme_layer(columns):
    """One row for each kind of weight that a search may stumble on."""
    w, importance = random_layer(1, columns)
    outlier = w.copy()
    outlier[0, 5] = 1e4
    rows = {
        "all zero": 0 * w,
        "negative zero": -0.0 * np.abs(w),
        "constant": 0 * w + np.float32(0.7),
        "negative constant": 0 * w - np.float32(3),
        "negative": -np.abs(w) - 1,
        "positive": np.abs(w) + 1,
        "huge": w * np.float32(1e16),
        "squares overflow": w * np.float32(1e30),
        "span overflows": np.sign(w) * np.float32(3e38),
        "tiny": w * np.float32(1e-30),
        "subnormal": w * np.float32(1e-43),
        "outlier": outlier,
        "one weight": np.where(np.arange(columns) == 40, w, np.float32(0)),
        "on a grid": np.rint(w),
    }
    return np.concatenate(list(rows.values())).astype(np.float32), importance


@cache
def expected(format, rows, columns, few):
    """Reference result for random_layer, or for extreme_layer where rows is 0."""
    layer = random_layer(rows, columns) if rows else extreme_layer(columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_search, "SHRINKS", FEW if few else SHRINKS)
        return grid_search_reference(*layer, format)


def assert_same_bits(found, wanted, rows=None):
    for one, other in zip(found, wanted, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one.view(np.uint32), other[:rows].view(np.uint32))


@ISA
@KINDS
@pytest.mark.parametrize("bits", [row.bits for row in INTEGERS.values()])
def test_the_search_gives_the_references_bits(isa, zero, bits, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    monkeypatch.setattr(grid_search, "SHRINKS", FEW)
    format = make_format(bits, 32, zero)
    wanted = expected(format, max(ROWS), 75, few=True)
    weights, importance = random_layer(max(ROWS), 75)
    for rows in ROWS:
        found = grid_search.grid_search(weights[:rows], importance, format)
        assert_same_bits(found, wanted, rows)


@ISA
@pytest.mark.parametrize(
    "row", [row for row in CATALOG.values() if row.table], ids=lambda r: r.name
)
def test_the_search_over_a_table_gives_the_references_bits(isa, row, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    monkeypatch.setattr(grid_search, "SHRINKS", FEW)
    format = format_of_row(row, 32, ZeroKind.FIXED)
    for rows in (17, 0):
        layer = random_layer(rows, 75) if rows else extreme_layer(75)
        found = grid_search.grid_search(*layer, format)
        assert_same_bits(found, expected(format, rows, 75, few=True))


@ISA
@KINDS
@pytest.mark.parametrize(("group_size", "columns"), [(64, 64), (64, 65), (128, 140), (ROW, 33)])
def test_every_group_size_and_ragged_end_gives_the_references_bits(
    isa, zero, group_size, columns, monkeypatch
):
    monkeypatch.setenv("CRUMB_ISA", isa)
    monkeypatch.setattr(grid_search, "SHRINKS", FEW)
    format = make_format(3, group_size, zero)
    found = grid_search.grid_search(*random_layer(17, columns), format)
    assert_same_bits(found, expected(format, 17, columns, few=True))


@ISA
@KINDS
@pytest.mark.parametrize("bits", [2, 8])
def test_extreme_weights_give_the_references_bits(isa, zero, bits, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    monkeypatch.setattr(grid_search, "SHRINKS", FEW)
    format = make_format(bits, 32, zero)
    found = grid_search.grid_search(*extreme_layer(75), format)
    assert_same_bits(found, expected(format, 0, 75, few=True))


@ISA
@KINDS
def test_all_shrink_factors_together_give_the_references_bits(isa, zero, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    format = make_format(3, 32, zero)
    found = grid_search.grid_search(*random_layer(17, 40), format)
    assert_same_bits(found, expected(format, 17, 40, few=False))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_thread_count_does_not_change_the_bits(threads, monkeypatch):
    format = make_format(4, 32, ZeroKind.MINIMUM)
    monkeypatch.setattr(grid_search, "SHRINKS", FEW)
    monkeypatch.setattr(threads_module, "processors", lambda: threads)
    found = grid_search.grid_search(*random_layer(70, 40), format)
    assert_same_bits(found, expected(format, 70, 40, few=True))


@ISA
def test_the_selected_set_is_the_one_that_runs(isa, monkeypatch):
    asked = []

    class Recorder:
        @staticmethod
        def grid_search(isa, *_arguments):
            asked.append(isa)

    monkeypatch.setenv("CRUMB_ISA", isa)
    monkeypatch.setattr(grid_search, "_native", Recorder)
    grid_search.grid_search(*random_layer(1, 32), make_format(3, 32, ZeroKind.FIXED))
    assert asked == [isa]
