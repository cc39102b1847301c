"""A Plan: a model as stages of flat operations over named buffers.

In: operations built by a family; their kinds are in crumb/operations. Out: what executors run,
what calibration walks, what prints.
A stage is the unit of streaming, of allocation and of offload. Encoder stacks run `once`, cross
attention reads their outputs by name, a cache or recurrent state is an operation's `state` slot.
Refuses a buffer that is read before it is written, and two operations with one state slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from crumb.errors import CheckpointError
from crumb.operations.linear import Linear
from crumb.operations.operation import Operation, TensorSpec


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

    def check(self, before: frozenset[str]) -> None:
        """Refuse a buffer that is read before it is written; `before`: by earlier stages.

        Raises: CheckpointError.
        """
        self._need(before, self.inputs, "its inputs")
        written = frozenset(self.inputs)
        for operation in self.operations:
            self._need(written, operation.reads, operation)
            written |= frozenset(operation.writes)
        self._need(written, self.outputs, "its outputs")

    def _need(self, written: frozenset[str], names: tuple[str, ...], reader: object) -> None:
        for name in names:
            if name not in written:
                raise CheckpointError(
                    "a plan reads a buffer that nothing has written",
                    where=f"{self.name}: {reader}",
                    expected=f"one of {', '.join(sorted(written))}",
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
        lasting = frozenset(self.inputs)  # what does not change from call to call
        before = lasting | {"tokens", "positions"}
        for stage in self.stages:
            stage.check(lasting if stage.once else before)
            before |= frozenset(stage.outputs)
            lasting |= frozenset(stage.outputs if stage.once else ())
        self._need_own_states()

    @cached_property
    def memory(self) -> frozenset[str]:
        """What stages that run once make for those that run again and again."""
        made = {name for stage in self.stages if stage.once for name in stage.outputs}
        read = {name for stage in self.stages if not stage.once for name in stage.inputs}
        return frozenset(made & read)

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
        """Those whose matrices quantization touches."""
        for stage in self.stages:
            for operation in stage.operations:
                if isinstance(operation, Linear) and not operation.exact:
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
