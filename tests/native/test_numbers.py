"""Numbers that the native core tells Python: each kind once, sizes within what any model has."""

import pytest

from crumb._native import (
    CACHE_KINDS,
    FLOAT_KINDS,
    SUB_KINDS,
    ZERO_KINDS,
    activation_rows,
    activation_stride,
    attention_scratch_floats,
    buffer_stride,
    cache_head_bytes,
    matmul_scratch_bytes,
)
from crumb.formats.catalog import ZeroKind
from crumb.run.memory_plan import CacheKind


def test_every_kind_of_python_has_one_number_of_the_kernels() -> None:
    assert set(ZERO_KINDS) == set(ZeroKind)
    assert set(CACHE_KINDS) == set(CacheKind)
    for kinds in (ZERO_KINDS, SUB_KINDS, FLOAT_KINDS, CACHE_KINDS):
        assert len(set(kinds.values())) == len(kinds)


@pytest.mark.parametrize(("count", "floats"), [(1, 16), (16, 16), (17, 32)])
def test_rows_of_a_buffer_are_whole_vectors(count: int, floats: int) -> None:
    assert buffer_stride(count) == floats


@pytest.mark.parametrize("count", [-1, (1 << 24) + 1, 1 << 62, (1 << 63) - 1, -(1 << 62)])
def test_sizes_of_more_than_any_model_are_refused(count: int) -> None:
    for size in (
        lambda: matmul_scratch_bytes(count),
        lambda: attention_scratch_floats(count, 16),
        lambda: attention_scratch_floats(16, count),
        lambda: cache_head_bytes(count, CACHE_KINDS["f32"]),
        lambda: activation_rows(count),
        lambda: activation_stride(count),
        lambda: buffer_stride(count),
    ):
        with pytest.raises(ValueError, match="must be 0 to 16777216"):
            size()
    with pytest.raises(ValueError, match="unknown kind"):
        cache_head_bytes(16, FLOAT_KINDS["bfloat16"])
