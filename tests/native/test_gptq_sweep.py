"""The native sweep against its slow twin, bit for bit, on every instruction set of this machine."""

from dataclasses import replace

import numpy as np
import pytest

from crumb.formats.catalog import CATALOG, INTEGERS, ZeroKind, format_of_row, make_format
from crumb.kernels import dispatch, gptq_sweep
from crumb.kernels import threads as threads_module
from crumb.kernels.gptq_sweep import SweepGrid, sweep, sweep_reference

ISA = pytest.mark.parametrize("isa", dispatch.supported_sets())
ROWS = (1, 15, 16, 17, 33)
COLUMNS = (1, 2, 7, 33, 128)


def random_block(format, rows, columns, seed=0):
    """start, weights, factor and grid of one block; the last group is never used."""
    rng = np.random.default_rng([seed, format.bits, rows, columns])
    groups = 4
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    start = weights + rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(0.1)
    factor = np.triu(rng.standard_normal((columns, columns)) * 0.2, 1) + np.eye(columns)
    scale = rng.standard_normal((rows, groups)).astype(np.float16).astype(np.float32)
    scale *= np.float32(4 / (1 << format.bits))
    scale[rng.random(scale.shape) < 0.1] = 0
    offset = rng.integers(0, 1 << format.bits, (rows, groups)).astype(np.float32)
    if format.zero is ZeroKind.MINIMUM:
        offset = -np.abs(rng.standard_normal((rows, groups))).astype(np.float32)
    group = rng.integers(0, groups - 1, columns).astype(np.int32)
    return start, weights, factor.astype(np.float32), SweepGrid(format, scale, offset, group)


def assert_same_bits(found, expected):
    codes, error = found
    expected_codes, expected_error = expected
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(error.view(np.uint32), expected_error.view(np.uint32))


@ISA
@pytest.mark.parametrize("zero", list(ZeroKind))
@pytest.mark.parametrize("bits", [row.bits for row in INTEGERS.values()])
def test_the_sweep_gives_the_references_bits(isa, zero, bits, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    format = make_format(bits, 32, zero)
    for rows, columns in [*((rows, 33) for rows in ROWS), *((17, columns) for columns in COLUMNS)]:
        block = random_block(format, rows, columns)
        assert_same_bits(sweep(*block), sweep_reference(*block))


@ISA
@pytest.mark.parametrize(
    "row", [row for row in CATALOG.values() if row.table], ids=lambda r: r.name
)
def test_the_sweep_over_a_table_gives_the_references_bits(isa, row, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    for rows, columns in [(1, 33), (16, 128), (33, 7)]:
        start, weights, factor, grid = random_block(
            format_of_row(row, row.group_sizes[0], ZeroKind.FIXED), rows, columns
        )
        scale = grid.scale / np.float32(max(row.table) / (1 << row.bits))
        block = start, weights, factor, replace(grid, scale=scale, offset=0 * scale)
        assert_same_bits(sweep(*block), sweep_reference(*block))
        codes = sweep(*block)[0]
        assert len(np.unique(codes)) == len(set(row.table)) or codes.size < 500


@ISA
def test_without_rounding_each_column_takes_its_target(isa, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    for rows in ROWS:
        start, weights, factor, grid = random_block(make_format(4, 32, ZeroKind.FIXED), rows, 33)
        codes, error = sweep(start, weights, factor, grid, rounding=False)
        assert_same_bits((codes, error), sweep_reference(start, weights, factor, grid, False))
        assert codes.shape == (0, 33)
        # The first target is where the block starts: nothing has been added to it yet.
        np.testing.assert_array_equal(error[:, 0], weights[:, 0] - start[:, 0])


EXTREMES = {
    "all zero": lambda w: 0 * w,
    "constant": lambda w: 0 * w + np.float32(0.7),
    "negative": lambda w: -np.abs(w),
    "huge": lambda w: w * np.float32(1e30),
    "tiny": lambda w: w * np.float32(1e-40),
}


@ISA
@pytest.mark.parametrize("zero", list(ZeroKind))
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_weights_give_the_references_bits(isa, zero, extreme, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    start, weights, factor, grid = random_block(make_format(3, 32, zero), 17, 33)
    # A tenth of the factor keeps the largest target, 1e30 * 1.1^33, inside f32.
    factor = factor * np.float32(0.1)
    block = (EXTREMES[extreme](start), EXTREMES[extreme](weights), factor, grid)
    assert_same_bits(sweep(*block), sweep_reference(*block))


@ISA
@pytest.mark.parametrize("zero", list(ZeroKind))
def test_ties_round_as_the_reference_rounds(isa, zero, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    # An fp16 scale times a half is exact in f32, and so is the quotient: every weight is a tie,
    # which a product with 1 / scale would miss.
    format = make_format(4, 32, zero)
    scale = random_block(format, 33, 1)[3].scale[:, :1]
    weights = (np.arange(-20, 20, dtype=np.float32) + np.float32(0.5)) * scale
    offset = np.full((33, 1), 0 if zero is ZeroKind.MINIMUM else 3, np.float32)
    grid = SweepGrid(format, scale, offset, np.zeros(40, np.int32))
    block = (weights, weights, np.eye(40, dtype=np.float32), grid)
    assert_same_bits(sweep(*block), sweep_reference(*block))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_thread_count_does_not_change_the_bits(threads, monkeypatch):
    block = random_block(make_format(3, 32, ZeroKind.VARIABLE), 70, 33)
    monkeypatch.setattr(threads_module, "processors", lambda: threads)
    assert_same_bits(sweep(*block), sweep_reference(*block))


@ISA
def test_the_selected_set_is_the_one_that_runs(isa, monkeypatch):
    asked = []

    class Recorder:
        @staticmethod
        def sweep(isa, *_arguments):
            asked.append(isa)

    monkeypatch.setenv("CRUMB_ISA", isa)
    monkeypatch.setattr(gptq_sweep, "_native", Recorder)
    sweep(*random_block(make_format(3, 32, ZeroKind.FIXED), 1, 2))
    assert asked == [isa]
