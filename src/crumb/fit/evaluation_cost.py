"""What an evaluation will cost: memory and time, before it starts.

In: opened models and the windows they will score. Out: an EvaluationCost.
Counts what evaluate/scores.py holds: decoded weights, the hidden states of a chunk of windows for
each model, and the logits of one window for each processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from crumb.architectures.plan import Plan
from crumb.evaluate.scores import CHUNK_TOKENS
from crumb.fit.quantize_cost import FIXED_BYTES, measured_rate, stage_work
from crumb.kernels.threads import processors
from crumb.run.model import KEPT_BYTES

LOGIT_ARRAYS = 6
"""Arrays as large as a window's logits while it is scored: two models' and their softmax."""


@dataclass(frozen=True)
class EvaluationCost:
    """An estimate; memory is the peak of the process."""

    memory_bytes: int
    seconds: float


def estimate_evaluation(plans: Sequence[Plan], windows: tuple[int, int]) -> EvaluationCost:
    """The cost of scoring windows (count, length) with models of these plans."""
    count, length = windows
    chunk = min(count, max(1, CHUNK_TOKENS // length)) * length
    memory = FIXED_BYTES + LOGIT_ARRAYS * 4 * length * plans[0].vocabulary * processors()
    work = 0.0
    for plan in plans:
        memory += _weight_bytes(plan) + 4 * chunk * plan.tensors()[0].shape[-1]
        work += sum(stage_work(stage, count * length, length) for stage in plan.stages)
    return EvaluationCost(memory, work / measured_rate())


def _weight_bytes(plan: Plan) -> int:
    """Decoded weights in memory: all of a small model, the largest stage of another."""
    whole = 4 * plan.parameters()
    if whole <= KEPT_BYTES:
        return whole
    return max(4 * sum(prod(spec.shape) for spec in stage.tensors()) for stage in plan.stages)
