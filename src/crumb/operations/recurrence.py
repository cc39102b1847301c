"""Recurrence: what a text leaves behind in a state of constant size, read at every token.

In: f32 inputs (batch, tokens, features), as the rule says which. Out: f32 (batch, tokens, heads *
value_dim), and of some rules another of that shape. A rule has one interface: a state to begin
with, and a chunk of tokens that gives the next one; a step is a chunk of one token. A chunk changes
no state that it reads, so who holds one has a snapshot, and goes back by handing it in again.
RULES has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.operations.matrix_states import (
    begin_matrix,
    chunk_matrix,
    gradient_matrix,
    matrix_floats,
    rows_of_heads,
)
from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    NativeProgram,
    Needs,
    Operation,
    OperationCost,
    Row,
    TensorSpec,
)
from crumb.operations.wkv import begin_wkv, chunk_wkv, decays_of_wkv, gradient_wkv, wkv_floats
from crumb.operations.wkv_matrix import (
    chunk_wkv_matrix,
    gradient_wkv_matrix,
    weights_of_heads,
)

State = tuple[Array, ...]
"""What a rule keeps of each text: arrays whose first axis is the batch."""


@dataclass(frozen=True)
class Recurrence(Operation):
    """output = what the rule reads of its state at each token, which the token then changes."""

    READS = ("inputs",)
    WRITES = ("output", "own")

    inputs: tuple[str, ...]  # as the rule names them
    output: str  # (batch, tokens, heads * value_dim)
    rule: str  # of RULES
    heads: int
    key_heads: int  # each for as many neighbouring heads
    key_dim: int  # features of a key
    value_dim: int
    weights: tuple[str, ...]  # as the rule names them
    state: str | None
    own: str | None = None  # as output: what each token reads of itself, of wkv7

    def tensors(self) -> tuple[TensorSpec, ...]:
        shapes = RULES[self.rule].weights(self)
        return tuple(
            TensorSpec(name, shape, matrix=False)
            for name, shape in zip(self.weights, shapes, strict=True)
        )


@dataclass(frozen=True)
class Rule:
    """One way of keeping a state."""

    inputs: tuple[str, ...]  # what they are, for who builds a plan
    weights: Callable[[Recurrence], tuple[tuple[int, ...], ...]]  # their shapes
    begin: Callable[[Recurrence, Array], State]
    """(operation, an input) -> the state before the first token of each text."""
    chunk: Callable[
        [Recurrence, tuple[Array, ...], State, tuple[Array, ...]], tuple[tuple[Array, ...], State]
    ]
    """(operation, inputs, state, weights) -> outputs and the state behind the last token."""
    gradient: Callable[
        [Recurrence, tuple[Array, ...], Gradients, tuple[Array, ...]], tuple[Gradients, Gradients]
    ]
    """(operation, inputs of whole texts, gradients of the outputs, weights)
    -> gradients of inputs and weights."""
    state_floats: Callable[[Recurrence], int]
    native_weights: Callable[[tuple[NDArray[np.float32], ...]], NDArray[np.float32]]
    """Weights as rows that the native engine reads."""
    multiply_adds: Callable[[Recurrence], float]


def _of_heads(count: int) -> Callable[[Recurrence], tuple[tuple[int, ...], ...]]:
    """Rate, bias, and of a scan the skip."""
    return lambda op: ((op.heads,),) * count


MATRIX = Rule(
    inputs=("query", "key", "value", "step"),
    weights=_of_heads(0),
    begin=begin_matrix,
    chunk=chunk_matrix,
    gradient=gradient_matrix,
    state_floats=matrix_floats,
    native_weights=rows_of_heads,
    multiply_adds=lambda op: 3.0 * op.heads * op.key_dim * op.value_dim,
)


def _of_wkv6(op: Recurrence) -> tuple[tuple[int, ...], ...]:
    """Decay and bonus."""
    return (1, 1, op.heads * op.key_dim), (op.heads, op.key_dim)


def _of_wkv7(op: Recurrence) -> tuple[tuple[int, ...], ...]:
    """Direction, renewal and bonus."""
    return (op.heads * op.key_dim,), (op.heads * op.key_dim,), (op.heads, op.key_dim)


WKV_MATRIX = replace(
    MATRIX,
    inputs=("query", "key", "value", "pace"),
    weights=_of_wkv6,
    chunk=chunk_wkv_matrix,
    gradient=gradient_wkv_matrix,
    native_weights=weights_of_heads,
)

RULES: Mapping[str, Rule] = {
    "wkv4": Rule(
        inputs=("key", "value"),
        weights=lambda op: ((op.heads,), (op.heads,)),
        begin=begin_wkv,
        chunk=chunk_wkv,
        gradient=gradient_wkv,
        state_floats=lambda op: wkv_floats(op.heads),
        native_weights=decays_of_wkv,
        multiply_adds=lambda op: 8.0 * op.heads,
    ),
    "delta": replace(MATRIX, inputs=(*MATRIX.inputs, "share"), weights=_of_heads(2)),
    "scan": replace(MATRIX, weights=_of_heads(3)),
    "wkv6": WKV_MATRIX,
    "wkv7": replace(
        WKV_MATRIX,
        inputs=(*WKV_MATRIX.inputs, "share"),
        weights=_of_wkv7,
        multiply_adds=lambda op: 4.0 * op.heads * op.key_dim * op.value_dim,
    ),
}
"""Name -> rule."""


def _reference(op: Recurrence, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    rule, states = RULES[op.rule], context.states
    weights = tuple(context.weights[name] for name in op.weights)
    past = None if states is None or op.state is None else states.get(op.state)
    state = rule.begin(op, reads[0]) if past is None else past
    outputs, state = rule.chunk(op, reads, state, weights)
    if states is not None and op.state is not None:
        states[op.state] = state
    return outputs


def _gradient(
    op: Recurrence, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    weights = tuple(context.weights[name] for name in op.weights)
    inputs, of_weights = RULES[op.rule].gradient(op, reads, output, weights)
    named = zip(op.weights, of_weights, strict=True)
    return inputs, {
        name: each for name, each in named if name in context.trained and each is not None
    }


def _native(op: Recurrence, program: NativeProgram) -> None:
    vectors = [program.vector(name) for name in op.weights]
    program.add(
        "recurrence",
        rule=op.rule,
        inputs=[program.buffer(name) for name in op.inputs],
        out=program.buffer(op.output),
        heads=op.heads,
        key_heads=op.key_heads,
        key_dim=op.key_dim,
        weights=RULES[op.rule].native_weights(tuple(each for each in vectors if each is not None)),
        **({} if op.own is None else {"own": program.buffer(op.own)}),
        **program.state(op),
    )


def _cost(op: Recurrence, _: float) -> OperationCost:
    return OperationCost(multiply_adds=RULES[op.rule].multiply_adds(op))


def _widths(op: Recurrence, _: Any) -> tuple[int, ...]:
    return (op.heads * op.value_dim,) * len(op.writes)


def _needs(op: Recurrence) -> Needs:
    return Needs(state_floats=RULES[op.rule].state_floats(op))


ROW = Row(Recurrence, _widths, _reference, _gradient, _native, _cost, _needs)
