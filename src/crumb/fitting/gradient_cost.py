"""What the pass that weighs calibration tokens costs: work, memory, disk (calibrate/token_weights).

In: a Plan, the shape of the tokens. Out: operations, bytes.
"""

from __future__ import annotations

from math import prod

from crumb.architectures.plan import Plan, Stage
from crumb.calibrate.token_weights import (
    BACKWARD_WORK,
    FORWARD_WORK,
    HEAD_TOKENS,
    layer_names,
)
from crumb.fitting.stage_cost import stage_work
from crumb.machine.processors import processors
from crumb.operations.attention import Attention
from crumb.operations.table import output_widths
from crumb.run.whole_texts import texts_together

FLOAT_BYTES = 4

ARRAYS = 3
"""A buffer, its gradient, and what a row works with: as often as a width is in memory."""


def stage_widths(stage: Stage, widths: dict[str, int]) -> dict[str, int]:
    """Features of each buffer of a stage, from those of what flows into it."""
    inner = {name: widths.get(name, 1) for name in stage.inputs}
    for operation in stage.operations:
        inner |= output_widths(operation, inner)
    return inner


def border_features(plan: Plan) -> list[int]:
    """Features of what flows out of each stage."""
    widths: dict[str, int] = {}
    borders = []
    for stage in plan.stages:
        inner = stage_widths(stage, widths)
        widths |= {name: inner[name] for name in stage.outputs}
        borders.append(sum(inner[name] for name in stage.outputs))
    return borders


def gradient_work(plan: Plan, shape: tuple[int, int]) -> float:
    """Operations of both passes; shape is (texts, length)."""
    works = [stage_work(stage, shape[0] * shape[1], shape[1]) for stage in plan.stages]
    return FORWARD_WORK * sum(works[:-1]) + BACKWARD_WORK * sum(works)


def gradient_disk_bytes(plan: Plan, shape: tuple[int, int]) -> int:
    """Most bytes in the pass's folder: what flows into each stage, and one gradient."""
    borders = border_features(plan)[:-1]
    features = sum(borders) + max(borders, default=0)
    layers = sum(len(layer_names(stage)) for stage in plan.stages)
    return FLOAT_BYTES * shape[0] * shape[1] * (features + layers)


def gradient_memory_bytes(plan: Plan, shape: tuple[int, int]) -> int:
    """Most memory: one stage's weights, a batch of its buffers a thread, one border."""
    texts = texts_together(shape[1])
    tokens = texts * shape[1]
    widths: dict[str, int] = {}
    peak = 0
    for stage in plan.stages:
        inner = stage_widths(stage, widths)
        widths |= {name: inner[name] for name in stage.outputs}
        at_once = texts * HEAD_TOKENS if stage is plan.stages[-1] else tokens
        heads = [each.heads for each in stage.operations if isinstance(each, Attention)]
        scores = ARRAYS * texts * max(heads, default=0) * shape[1] ** 2
        batch = ARRAYS * at_once * sum(inner.values()) + scores
        weights = sum(prod(spec.shape) for spec in stage.tensors())
        peak = max(peak, weights + batch * processors())
    borders = 2 * shape[0] * shape[1] * max(border_features(plan)[:-1], default=0)
    return FLOAT_BYTES * (peak + borders)
