"""Whether a GGUF file would mean the model that it was made of.

In: the Plan of a model, and that of the configuration which its metadata give when read back.
Out: nothing. Refuses a model whose operations differ: what llama.cpp's code fixes for an
architecture, such as the period of its windows, has no key to say otherwise.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

from crumb.architectures.plan import Plan
from crumb.errors import UsageError
from crumb.operations.activation import Activation
from crumb.operations.attention import Attention
from crumb.operations.operation import Operation
from crumb.operations.rope import Rope
from crumb.operations.rotary import Rotary

ROUNDING = 1e-6
"""Of numbers, which a file holds in f32."""


def check_as_read(architecture: str, plan: Plan, read: Plan) -> None:
    """Refuse a model that the file would make another of. Raises: UsageError."""
    for stage, again in zip(plan.stages, read.stages, strict=True):
        pairs = zip(stage.operations, again.operations, strict=False)
        differ = [pair for pair in pairs if not _same(*map(_comparable, pair))]
        if differ or len(stage.operations) != len(again.operations):
            mine, theirs = differ[0] if differ else (stage.operations[-1], again.operations[-1])
            raise UsageError(
                f"llama.cpp's {architecture} cannot express this model",
                where=f"config.json: {stage.name}",
                expected=" ".join(str(theirs).split())[:160],
                found=" ".join(str(mine).split())[:160],
            )


def _comparable(operation: Operation) -> Operation:
    """An operation without what is checked elsewhere: scalings of ropes, kinds of gelu."""
    if isinstance(operation, Rotary):
        return replace(operation, rope=Rope(operation.rope.dimensions, operation.rope.theta))
    if isinstance(operation, Activation) and "gelu" in operation.function:
        return replace(operation, function="gelu")
    return operation


def _same(one: Operation, other: Operation) -> bool:
    """Whether two operations are equal but for roundings, names of tensors included."""
    if type(one) is not type(other):
        return False
    for each in fields(one):
        a, b = getattr(one, each.name), getattr(other, each.name)
        if isinstance(a, float) and isinstance(b, float):
            if not math.isclose(a, b, rel_tol=ROUNDING):
                return False
        elif a != b:
            return False
    return True


def without_idle_windows(plan: Plan) -> Plan:
    """The plan without windows and chunks that no text is long enough for."""
    stages = tuple(
        replace(
            stage,
            operations=tuple(
                _without_idle(each, plan.max_positions) if isinstance(each, Attention) else each
                for each in stage.operations
            ),
        )
        for stage in plan.stages
    )
    return replace(plan, stages=stages)


def _without_idle(attention: Attention, positions: int) -> Attention:
    window, chunk = (
        None if each is not None and each >= positions else each
        for each in (attention.window, attention.chunk)
    )
    return replace(attention, window=window, chunk=chunk)
