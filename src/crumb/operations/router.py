"""Router: which experts a token uses, and what share each has in its output.

In: f32 (batch, tokens, experts), the scores that a float Linear gave. Out: f32 (batch, tokens,
used): shares, and the experts' numbers as whole floats, best first. Of equal scores the lower
number is chosen. Sources: arXiv 1701.06538, eq. 3; groups and biases of the choice: arXiv
2412.19437, eq. 12 to 16.
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    NativeProgram,
    Operation,
    Row,
    TensorSpec,
)

SCORINGS = ("none", "softmax", "sigmoid")
"""What is made of all scores before experts are chosen."""

FINISHES = ("none", "sum", "softmax", "sigmoid")
"""What is made of the chosen ones: `sum` divides them by their sum."""

LEAST = -3e38
"""Of an expert whose group is not chosen."""


@dataclass(frozen=True)
class Router(Operation):
    """chosen = the `used` best of scoring(input) + bias; shares = factor finish(scoring(input)).

    With groups, only experts of the top_groups best ones are chosen; a group is as good as the sum
    of its group_best best experts.
    """

    WRITES = ("shares", "chosen")

    input: str  # (batch, tokens, experts)
    shares: str  # (batch, tokens, used)
    chosen: str  # (batch, tokens, used)
    experts: int
    used: int
    scoring: str = "none"  # one of SCORINGS
    finish: str = "none"  # one of FINISHES
    bias: str | None = None  # (experts,) added for the choice alone
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    floor: float = 0.0  # added to the sum that `sum` divides by
    factor: float = 1.0

    def tensors(self) -> tuple[TensorSpec, ...]:
        return () if self.bias is None else (TensorSpec(self.bias, (self.experts,), matrix=False),)


def _soft(x: Array) -> Array:
    xp = array_namespace(x)
    weight = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return weight / xp.sum(weight, axis=-1, keepdims=True)


def _sigmoid(x: Array) -> Array:
    xp = array_namespace(x)
    return 1.0 / (1.0 + xp.exp(-xp.clip(x, min=-80.0)))


def _best(x: Array, count: int) -> Array:
    """Places of the `count` largest of the last axis, largest first, of equal ones the first."""
    xp = array_namespace(x)
    return xp.argsort(x, axis=-1, descending=True, stable=True)[..., :count]


def _marks(places: Array, count: int, dtype: object) -> Array:
    """1 at each place: (..., places, count)."""
    xp = array_namespace(places)
    every = xp.arange(count, device=places.device)
    return xp.astype(places[..., None] == every, dtype)


def _in_groups(op: Router, worth: Array) -> Array:
    """Worth of experts, LEAST where their group is not among the best."""
    xp = array_namespace(worth)
    apart = xp.reshape(worth, (*worth.shape[:-1], op.groups, -1))
    ordered = xp.sort(apart, axis=-1, descending=True)
    of_group = xp.sum(ordered[..., : op.group_best], axis=-1)
    best = _marks(_best(of_group, op.top_groups), op.groups, xp.bool)
    among = xp.any(best, axis=-2)[..., None]
    hidden = xp.full_like(apart, LEAST)
    return xp.reshape(xp.where(among, apart, hidden), worth.shape)


def _scored(op: Router, scores: Array) -> Array:
    return {"none": lambda x: x, "softmax": _soft, "sigmoid": _sigmoid}[op.scoring](scores)


def _chosen(op: Router, scored: Array, context: Context) -> Array:
    worth = scored if op.bias is None else scored + context.weights[op.bias]
    return _best(worth if op.groups == 1 else _in_groups(op, worth), op.used)


def _finished(op: Router, picked: Array) -> Array:
    xp = array_namespace(picked)
    if op.finish == "sum":
        return picked / (xp.sum(picked, axis=-1, keepdims=True) + op.floor)
    return {"none": lambda x: x, "softmax": _soft, "sigmoid": _sigmoid}[op.finish](picked)


def _picked(scored: Array, chosen: Array) -> Array:
    xp = array_namespace(scored)
    marks = _marks(chosen, scored.shape[-1], scored.dtype)
    return xp.sum(marks * scored[..., None, :], axis=-1)


def _reference(op: Router, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    scored, xp = _scored(op, reads[0]), array_namespace(reads[0])
    chosen = _chosen(op, scored, context)
    return op.factor * _finished(op, _picked(scored, chosen)), xp.astype(chosen, scored.dtype)


def _softmax_slope(y: Array, gradient: Array) -> Array:
    xp = array_namespace(y)
    return y * (gradient - xp.sum(gradient * y, axis=-1, keepdims=True))


def _gradient(
    op: Router, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    toward, xp = output[0], array_namespace(reads[0])
    if toward is None:
        return (None,), {}
    scored = _scored(op, reads[0])
    chosen = _chosen(op, scored, context)
    picked = _picked(scored, chosen)
    shares, gradient = _finished(op, picked), op.factor * toward
    if op.finish == "sum":
        inner = gradient - xp.sum(gradient * shares, axis=-1, keepdims=True)
        gradient = inner / (xp.sum(picked, axis=-1, keepdims=True) + op.floor)
    elif op.finish == "softmax":
        gradient = _softmax_slope(shares, gradient)
    elif op.finish == "sigmoid":
        gradient = gradient * shares * (1.0 - shares)
    marks = _marks(chosen, op.experts, scored.dtype)
    gradient = xp.sum(marks * gradient[..., None], axis=-2)
    if op.scoring == "softmax":
        gradient = _softmax_slope(scored, gradient)
    elif op.scoring == "sigmoid":
        gradient = gradient * scored * (1.0 - scored)
    trained = {}
    if op.bias is not None and op.bias in context.trained:  # a choice has no slope
        trained[op.bias] = xp.zeros_like(context.weights[op.bias])
    return (gradient,), trained


def _native(op: Router, program: NativeProgram) -> None:
    program.add(
        "router",
        input=program.buffer(op.input),
        shares=program.buffer(op.shares),
        chosen=program.buffer(op.chosen),
        scoring=op.scoring,
        finish=op.finish,
        bias=program.vector(op.bias),
        groups=op.groups,
        top_groups=op.top_groups,
        group_best=op.group_best,
        floor=op.floor,
        factor=op.factor,
    )


ROW = Row(Router, lambda op, widths: (op.used, op.used), _reference, _gradient, _native)
