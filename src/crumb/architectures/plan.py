"""A Plan: a model as stages of flat operations over named buffers.

In: operations built by a family. Out: what executors run, what calibration walks, what prints.
A stage is the unit of streaming, of allocation and of offload. Encoder stacks run `once`, cross
attention reads their outputs by name, a cache or recurrent state is an operation's `state` slot.
Refuses a buffer that is read before it is written, and two operations with one state slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

from crumb.architectures.rope import Rope
from crumb.errors import CheckpointError

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu")
"""Elementwise functions that executors provide, as configurations name them."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor the plan needs, as the checkpoint must hold it."""

    name: str
    shape: tuple[int, ...]
    matrix: bool  # a linear layer or embedding: what quantization touches


@dataclass(frozen=True)
class Operation:
    """One step. Fields named in READS and WRITES hold buffer names."""

    READS: ClassVar[tuple[str, ...]] = ("input",)
    WRITES: ClassVar[tuple[str, ...]] = ("output",)

    def _names(self, which: tuple[str, ...]) -> tuple[str, ...]:
        found: list[str] = []
        for name in which:
            value = getattr(self, name)
            found.extend(value if isinstance(value, tuple) else (value,))
        return tuple(found)

    @property
    def reads(self) -> tuple[str, ...]:
        return self._names(self.READS)

    @property
    def writes(self) -> tuple[str, ...]:
        return self._names(self.WRITES)

    def tensors(self) -> tuple[TensorSpec, ...]:
        return ()

    def __str__(self) -> str:
        hidden = {*self.READS, *self.WRITES}
        settings = (
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in hidden and getattr(self, field.name) is not None
        )
        kind = type(self).__name__.lower()
        flow = f"{', '.join(self.writes)} <- {', '.join(self.reads)}"
        return f"{kind:<10} {flow:<28} {' '.join(settings)}".rstrip()


@dataclass(frozen=True)
class Embed(Operation):
    """output[t] = weight[input[t]]."""

    input: str  # (batch, tokens) indices
    output: str  # (batch, tokens, features)
    weight: str
    rows: int
    features: int

    def tensors(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.weight, (self.rows, self.features), matrix=True),)


@dataclass(frozen=True)
class Norm(Operation):
    """Normalisation over features: "rms" or "layer"."""

    input: str
    output: str
    kind: str
    weight: str
    bias: str | None
    epsilon: float
    features: int

    def tensors(self) -> tuple[TensorSpec, ...]:
        names = [self.weight] if self.bias is None else [self.weight, self.bias]
        return tuple(TensorSpec(name, (self.features,), matrix=False) for name in names)


@dataclass(frozen=True)
class Linear(Operation):
    """output = input weight^T + bias."""

    input: str
    output: str
    weight: str
    bias: str | None
    in_features: int
    out_features: int

    def tensors(self) -> tuple[TensorSpec, ...]:
        weight = TensorSpec(self.weight, (self.out_features, self.in_features), matrix=True)
        if self.bias is None:
            return (weight,)
        return (weight, TensorSpec(self.bias, (self.out_features,), matrix=False))


@dataclass(frozen=True)
class Split(Operation):
    """Features viewed as (outer, parts, inner); output p is part p of every outer, joined."""

    WRITES = ("outputs",)

    input: str
    outputs: tuple[str, ...]
    outer: int
    inner: int


@dataclass(frozen=True)
class Rotary(Operation):
    """Rotary position embedding of the first rope.dimensions features of each head.

    style "half" pairs feature i with i + dimensions/2, "interleaved" pairs 2i with 2i + 1.
    Positions are consecutive and the same in every row of a batch.
    """

    READS = ("input", "positions")

    input: str
    positions: str
    output: str
    heads: int
    style: str
    rope: Rope


@dataclass(frozen=True)
class Attention(Operation):
    """softmax(scale q k^T + mask) v for each head; key and value heads may be fewer.

    With a state slot, earlier keys and values are prepended; window counts the query itself.
    A soft cap c turns each score s into c tanh(s / c).
    """

    READS = ("query", "key", "value")

    query: str
    key: str
    value: str
    output: str
    heads: int
    key_value_heads: int
    head_dim: int
    scale: float
    causal: bool
    window: int | None
    state: str | None
    soft_cap: float | None = None


@dataclass(frozen=True)
class Activation(Operation):
    """output = function(input), elementwise."""

    input: str
    output: str
    function: str


@dataclass(frozen=True)
class Multiply(Operation):
    """output = left * right, elementwise."""

    READS = ("left", "right")

    left: str
    right: str
    output: str


@dataclass(frozen=True)
class Add(Operation):
    """output = left + right, elementwise."""

    READS = ("left", "right")

    left: str
    right: str
    output: str


@dataclass(frozen=True)
class Stage:
    """Operations that run together with their weights in memory."""

    name: str
    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    once: bool = False  # run at the start of a session only; its outputs are kept

    def tensors(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for operation in self.operations for spec in operation.tensors())

    @cached_property
    def _live(self) -> tuple[frozenset[str], ...]:
        live = [frozenset(self.outputs)]
        for operation in reversed(self.operations[1:]):
            live.append(live[-1] | frozenset(operation.reads))
        return tuple(reversed(live))

    def live_after(self, index: int) -> frozenset[str]:
        """Buffers that are still needed once operation `index` has run."""
        return self._live[index]

    def check(self, given: frozenset[str]) -> None:
        """Refuse a buffer that is read before it is written, `given` being what comes before.

        Raises: CheckpointError.
        """
        self._need(given, self.inputs, "its inputs")
        known = frozenset(self.inputs)
        for operation in self.operations:
            self._need(known, operation.reads, operation)
            known |= frozenset(operation.writes)
        self._need(known, self.outputs, "its outputs")

    def _need(self, known: frozenset[str], names: tuple[str, ...], reader: object) -> None:
        for name in names:
            if name not in known:
                raise CheckpointError(
                    "a plan reads a buffer that nothing has written",
                    where=f"{self.name}: {reader}",
                    expected=f"one of {', '.join(sorted(known))}",
                    found=name,
                )


@dataclass(frozen=True)
class Plan:
    """A whole model: buffers "tokens" and "positions" go in, "logits" comes out.

    `inputs` names what else goes in, once for each sequence: what an encoder reads.
    """

    family: str
    vocabulary: int
    max_positions: int
    stages: tuple[Stage, ...]
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kept = frozenset(self.inputs)  # what does not change from call to call
        given = kept | {"tokens", "positions"}
        for stage in self.stages:
            stage.check(kept if stage.once else given)
            given |= frozenset(stage.outputs)
            kept |= frozenset(stage.outputs if stage.once else ())
        self._need_own_states()

    def _need_own_states(self) -> None:
        taken: set[str] = set()
        for stage in self.stages:
            for operation in stage.operations:
                state = getattr(operation, "state", None)
                if state in taken:
                    raise CheckpointError(
                        "two operations of a plan keep their state in one slot",
                        where=f"{stage.name}: {operation}",
                        found=state,
                    )
                if state is not None:
                    taken.add(state)

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Each tensor once, in the order of first use."""
        unique: dict[str, TensorSpec] = {}
        for stage in self.stages:
            for spec in stage.tensors():
                unique.setdefault(spec.name, spec)
        return tuple(unique.values())

    def linears(self) -> Iterator[Linear]:
        for stage in self.stages:
            for operation in stage.operations:
                if isinstance(operation, Linear):
                    yield operation

    def parameters(self) -> int:
        """Weights in all tensors, tied ones counted once."""
        total = 0
        for spec in self.tensors():
            count = 1
            for size in spec.shape:
                count *= size
            total += count
        return total

    def __str__(self) -> str:
        lines = [f"{self.family}: vocabulary {self.vocabulary}, {self.parameters()} parameters"]
        lines += [f"given: {name}" for name in self.inputs]
        for stage in self.stages:
            flow = f"{', '.join(stage.inputs)} -> {', '.join(stage.outputs)}"
            lines.append(f"stage {stage.name}: {flow}{' (once)' if stage.once else ''}")
            lines.extend(f"  {operation}" for operation in stage.operations)
        return "\n".join(lines)
