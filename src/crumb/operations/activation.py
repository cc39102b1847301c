"""Activation: a function of each element, some with a number of their own.

In: f32 of any shape. Out: the same shape. FUNCTIONS has one row per name a configuration may give:
the function, its derivative, and what the native engine calls it.
Sources: GELU, arXiv 1606.08415; SiLU, arXiv 1702.03118.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from array_api_compat import array_namespace

from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    NativeProgram,
    Operation,
    Row,
    same_width,
)


@dataclass(frozen=True)
class Activation(Operation):
    """output = function(input), elementwise."""

    input: str
    output: str
    function: str  # a name of FUNCTIONS, or with a number one of NUMBERED
    number: float | None = None


@dataclass(frozen=True)
class Function:
    """One elementwise function."""

    value: Callable[..., Array]
    derivative: Callable[..., Array]
    native: str


def _erf(x: Array) -> Array:
    """Error function, absolute error below 2e-7 (Abramowitz and Stegun 7.1.26)."""
    xp = array_namespace(x)
    t = 1.0 / (1.0 + 0.3275911 * xp.abs(x))
    polynomial = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    polynomial = t * (0.254829592 + t * (-0.284496736 + polynomial))
    return xp.sign(x) * (1.0 - polynomial * xp.exp(-x * x))


def _sigmoid(x: Array) -> Array:
    xp = array_namespace(x)
    return 1.0 / (1.0 + xp.exp(-xp.clip(x, min=-80.0)))  # no overflow


def _sigmoid_slope(x: Array) -> Array:
    share = _sigmoid(x)
    return share * (1.0 - share)


def _silu(x: Array) -> Array:
    xp = array_namespace(x)
    return x / (1.0 + xp.exp(-xp.clip(x, min=-80.0)))  # no overflow; silu(-80) is 0 in f32


def _silu_slope(x: Array) -> Array:
    share = _sigmoid(x)
    return share * (1.0 + x * (1.0 - share))


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + _erf(x * 0.7071067811865476))


def _gelu_slope(x: Array) -> Array:
    xp = array_namespace(x)
    density = xp.exp(-0.5 * x * x) * 0.3989422804014327
    return 0.5 * (1.0 + _erf(x * 0.7071067811865476)) + x * density


def _gelu_tanh(x: Array) -> Array:
    xp = array_namespace(x)
    return 0.5 * x * (1.0 + xp.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def _gelu_tanh_slope(x: Array) -> Array:
    xp = array_namespace(x)
    tanh = xp.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
    inner = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
    return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner


def _relu(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


def _relu_slope(x: Array) -> Array:
    return array_namespace(x).astype(x > 0, x.dtype)


def _relu2(x: Array) -> Array:
    over = _relu(x)
    return over * over


def _relu2_slope(x: Array) -> Array:
    return 2.0 * _relu(x)


def _scale_slope(x: Array, number: float) -> Array:
    return array_namespace(x).full_like(x, number)


def _soft_cap(x: Array, number: float) -> Array:
    return number * array_namespace(x).tanh(x / number)


def _soft_cap_slope(x: Array, number: float) -> Array:
    squeezed = array_namespace(x).tanh(x / number)
    return 1.0 - squeezed * squeezed


def _clip(x: Array, number: float) -> Array:
    return array_namespace(x).clip(x, min=-number, max=number)


def _clip_slope(x: Array, number: float) -> Array:
    xp = array_namespace(x)
    return xp.astype(xp.abs(x) <= number, x.dtype)


_GELU_TANH = Function(_gelu_tanh, _gelu_tanh_slope, "gelu_tanh")
_RELU2 = Function(_relu2, _relu2_slope, "relu2")

FUNCTIONS: dict[str, Function] = {
    "silu": Function(_silu, _silu_slope, "silu"),
    "gelu": Function(_gelu, _gelu_slope, "gelu"),
    "gelu_new": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "relu": Function(_relu, _relu_slope, "relu"),
    "relu2": _RELU2,
    "sqrelu": _RELU2,
    "sigmoid": Function(_sigmoid, _sigmoid_slope, "sigmoid"),
}
"""Functions of an element alone."""

NUMBERED: dict[str, Function] = {
    "scale": Function(lambda x, number: x * number, _scale_slope, "scale"),
    "soft_cap": Function(_soft_cap, _soft_cap_slope, "soft_cap"),
    "clip": Function(_clip, _clip_slope, "clip"),
}
"""Functions of an element and a number: x * c, c tanh(x / c), and x held within -c .. c."""


def function_of(op: Activation) -> Function:
    """The row of an operation's function."""
    return FUNCTIONS[op.function] if op.number is None else NUMBERED[op.function]


def _numbers(op: Activation) -> tuple[float, ...]:
    return () if op.number is None else (op.number,)


def _reference(op: Activation, reads: tuple[Array, ...], _: Context) -> tuple[Array, ...]:
    return (function_of(op).value(reads[0], *_numbers(op)),)


def _gradient(
    op: Activation, reads: tuple[Array, ...], output: Gradients, _: Context
) -> tuple[Gradients, dict[str, Array]]:
    return (output[0] * function_of(op).derivative(reads[0], *_numbers(op)),), {}


def _native(op: Activation, program: NativeProgram) -> None:
    program.add(
        "activation",
        input=program.buffer(op.input),
        out=program.buffer(op.output),
        function=function_of(op).native,
        number=op.number,
    )


ROW = Row(Activation, same_width, _reference, _gradient, _native)
