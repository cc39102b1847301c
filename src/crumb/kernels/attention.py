"""Causal attention of whole texts on one thread, natively.

In: f32 queries, keys and values of a batch of texts, (texts, tokens, heads * head_dim). Out: the
values mixed for each query. Keys and values may have fewer heads. A query's result does not depend
on the texts beside it. Its reference is the array executor's attention.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.kernels.dispatch import selected_set

Floats = NDArray[np.float32]

NONE = 0
"""No soft cap, no window, as native/run_kernels.hpp has it."""


def causal_attention(
    query: Floats,
    key: Floats,
    value: Floats,
    heads: int,
    key_value_heads: int,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
) -> Floats:
    """softmax(scale q k^T) v for each head, each query seeing itself and what is before it.

    Shapes: query (texts, tokens, heads * head_dim); key, value (texts, tokens, key_value_heads *
    head_dim) -> that of query. A window counts the query itself.
    """
    query = np.ascontiguousarray(query)
    mixed = np.empty_like(query)
    _native.attention_step(
        selected_set(),
        query,
        np.ascontiguousarray(key),
        np.ascontiguousarray(value),
        mixed,
        heads,
        key_value_heads,
        scale,
        soft_cap or NONE,
        window or NONE,
    )
    return mixed
