"""The backward pass: gradients of a scalar loss, a stage at a time.

In: a Model, tokens, what an encoder reads beside them, the gradient of a loss at the logits.
Out: gradients of tensors and of any buffer a caller looks at. Holds what flows between stages and
one stage's buffers: but for the last, a stage is run again before its rows are walked in reverse.
Products of NumPy's f32 arrays run in the native kernels. Refuses tokens that no model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from array_api_compat import array_namespace

from crumb.architectures.plan import Stage
from crumb.kernels.products import multiply
from crumb.operations.operation import Array, Context, Gradients, Operation
from crumb.operations.table import row_of
from crumb.run.array_executor import run_operation
from crumb.run.model import Memory, Model, check_tokens, start_buffers

Reads = list[tuple[Array, ...]]
"""The arrays that each operation of a stage read."""

Visit = Callable[[Operation, tuple[Array, ...], Gradients], None]
"""(operation, arrays it read, gradients of what it wrote), once for each operation, in reverse."""


@dataclass
class Backward:
    """A model's forward pass over whole texts, and the way back."""

    model: Model
    tokens: Array  # (batch, tokens)
    trained: Collection[str] = ()  # tensors whose gradients are returned
    visit: Visit = lambda operation, reads, gradients: None
    inputs: Mapping[str, Array] = field(default_factory=dict)  # the plan's, beside the tokens
    _borders: list[dict[str, Array]] = field(default_factory=list)  # what flows into each stage
    _last: Reads = field(default_factory=list)  # of the last stage, until the way back begins
    _rotations: dict[Any, tuple[Array, Array]] = field(default_factory=dict)

    def logits(self) -> Array:
        """The forward pass. Shapes: -> (batch, tokens, vocabulary). Raises: UsageError."""
        plan = self.model.plan
        check_tokens(plan, self.tokens, Memory(lasting=dict(self.inputs), states=None))
        flowing = start_buffers(self.tokens) | dict(self.inputs)
        self._borders = []
        for stage in plan.stages:
            self._borders.append({name: flowing[name] for name in stage.inputs})
            buffers = dict(flowing)
            self._last = run_reading(stage, buffers, self._context(stage))
            flowing |= {name: buffers[name] for name in stage.outputs}
        return flowing["logits"]

    def gradients(self, logits: Array) -> dict[str, Array]:
        """Gradients of the trained tensors, of a loss whose gradient at the logits this is.

        Shapes: (batch, tokens, vocabulary) -> each as its tensor. Call `logits` before.
        """
        assert self._borders, "the forward pass comes first"
        flowing: dict[str, Array] = {"logits": logits}
        totals: dict[str, Array] = {}
        stages = list(zip(self.model.plan.stages, self._borders, strict=True))
        for stage, inputs in reversed(stages):
            context = self._context(stage)
            reads, self._last = self._last or run_reading(stage, dict(inputs), context), []
            trained = walk_back(stage, reads, flowing, context, self.visit)
            for name, gradient in trained.items():
                _add(totals, name, gradient)
        return totals

    def _context(self, stage: Stage) -> Context:
        weights = self.model.stage_weights(stage)
        return Context(weights, None, self._rotations, self.trained, multiply)


def stage_gradients(
    stage: Stage,
    buffers: dict[str, Array],
    flowing: dict[str, Array],
    context: Context,
    visit: Visit = lambda operation, reads, gradients: None,
) -> dict[str, Array]:
    """Run a stage again on its inputs, then walk it in reverse, as `walk_back` does."""
    return walk_back(stage, run_reading(stage, buffers, context), flowing, context, visit)


def run_reading(stage: Stage, buffers: dict[str, Array], context: Context) -> Reads:
    """Run a stage; its buffers are added to those it began with."""
    reads = []
    for operation in stage.operations:
        reads.append(tuple(buffers[name] for name in operation.reads))
        run_operation(operation, buffers, context)
    return reads


def walk_back(
    stage: Stage, reads: Reads, flowing: dict[str, Array], context: Context, visit: Visit
) -> dict[str, Array]:
    """Walk a stage in reverse, using up `reads`.

    `flowing` has the gradients of what the stage writes, then of what it reads.
    Out: the gradients of the tensors in `context.trained`.
    """
    totals: dict[str, Array] = {}
    for operation in reversed(stage.operations):
        arrays = reads.pop()
        outputs = tuple(flowing.pop(name, None) for name in operation.writes)
        if all(output is None for output in outputs):
            continue  # nothing behind it reads what it writes
        visit(operation, arrays, outputs)
        inputs, trained = row_of(operation).gradient(operation, arrays, outputs, context)
        for name, gradient in zip(operation.reads, inputs, strict=True):
            _add(flowing, name, gradient)
        for name, gradient in trained.items():
            _add(totals, name, gradient)
    return totals


def _add(totals: dict[str, Array], name: str, gradient: Array | None) -> None:
    if gradient is not None:
        totals[name] = totals[name] + gradient if name in totals else gradient


def next_token_loss(logits: Array, tokens: Array) -> tuple[float, Array]:
    """Mean loss of each token after the first, in nats, and its gradient at the logits.

    Shapes: (batch, tokens, vocabulary), (batch, tokens) -> as the logits.
    """
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    weights = xp.exp(shifted)
    total = xp.sum(weights, axis=-1, keepdims=True)
    gradient = weights / total
    batch, length, vocabulary = logits.shape
    hits = xp.arange(vocabulary, device=logits.device)[None, None, :] == tokens[:, 1:, None]
    hits = xp.astype(hits, logits.dtype)
    logprobs = (shifted - xp.log(total))[:, :-1, :]
    count = batch * (length - 1)
    gradient[:, :-1, :] -= hits
    gradient[:, -1, :] = 0.0
    return -float(xp.sum(logprobs * hits)) / count, gradient / count
