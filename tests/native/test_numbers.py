"""Sizes that the native core tells Python: within what any model has, refused beyond."""

import pytest

from crumb._native import attention_scratch_floats, cache_head_bytes, matmul_scratch_bytes

BF16 = 2


@pytest.mark.parametrize("count", [-1, (1 << 24) + 1, 1 << 62, (1 << 63) - 1, -(1 << 62)])
def test_sizes_of_more_than_any_model_are_refused(count: int) -> None:
    for size in (
        lambda: matmul_scratch_bytes(count),
        lambda: attention_scratch_floats(count, 16),
        lambda: attention_scratch_floats(16, count),
        lambda: cache_head_bytes(count, 0),
    ):
        with pytest.raises(ValueError, match="must be 0 to 16777216"):
            size()
    with pytest.raises(ValueError, match="unknown kind"):
        cache_head_bytes(16, BF16)
