"""Steps on rows of f32 features, on one thread, natively: norm, activation, rotary embedding.

In: arrays (texts, tokens, features). Out: new arrays of that shape; a row's result does not depend
on the rows beside it. Their references are the array executor's functions.
Products and sums of two arrays are not here: NumPy is as fast, memory rules them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.kernels.dispatch import selected_set

Floats = NDArray[np.float32]

FUNCTION_CODE = {
    "silu": 0,
    "gelu": 1,
    "gelu_new": 2,
    "gelu_fast": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "scale": 8,
    "soft_cap": 9,
    "clip": 10,
}
"""Activations as native/run_kernels.hpp numbers them."""


def normalize(
    x: Floats, weight: Floats, bias: Floats | None, epsilon: float, centered: bool
) -> Floats:
    """Each row over its root mean square, or layer norm where centered.

    Shapes: x (texts, tokens, features); weight, bias (features,).
    """
    x = np.ascontiguousarray(x)
    normed = np.empty_like(x)
    _native.norm_step(selected_set(), x, normed, weight, bias, epsilon, centered)
    return normed


def activate(x: Floats, function: str, number: float | None = None) -> Floats:
    """function(x), one of FUNCTION_CODE, elementwise; the last three take a number."""
    x = np.ascontiguousarray(x)
    active = np.empty_like(x)
    code = FUNCTION_CODE[function]
    _native.activation_step(selected_set(), x, active, code, number or 0.0)
    return active


def rotate(x: Floats, turns: Floats, heads: int, interleaved: bool) -> Floats:
    """The first features of each head turned in pairs.

    Shapes: x (texts, tokens, heads * head_dim); turns (tokens, dimensions), the cosines of each
    pair, then the sines. Pairs are neighbours where interleaved, else half of dimensions apart.
    """
    x = np.ascontiguousarray(x)
    turned = np.empty_like(x)
    _native.rotary_step(selected_set(), x, turned, turns, heads, interleaved)
    return turned
