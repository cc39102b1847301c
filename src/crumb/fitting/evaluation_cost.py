"""What an evaluation will cost: memory and time, before it starts.

In: opened models, the windows they will score, the executor. Out: a Cost.
Counts what evaluation/walks.py holds. Native: mapped weights, engines by their own plans, blocks of
logits. Array: decoded weights, hidden states of a chunk of windows, logits of a window a processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from crumb.architectures.plan import Plan
from crumb.evaluation.execution import Execution, ExecutorKind, block_tokens
from crumb.evaluation.walks import CHUNK_TOKENS, engine_settings, lane_bytes
from crumb.fitting.quantize_cost import FIXED_BYTES, measured_rate
from crumb.fitting.stage_cost import stage_work
from crumb.machine.processors import processors
from crumb.progress import Cost, CostListener
from crumb.run.lanes import lane_count
from crumb.run.model import KEPT_BYTES, Model
from crumb.texts.windows import Windows

LOGIT_ARRAYS = 6
"""Array executor: arrays as large as a window's logits while it is scored."""

BLOCK_ARRAYS = 2
"""Native: arrays as large as a block of logits beside the engines' own, for the softmax."""

NATIVE_RATE = 1.4
"""Work of the native engine, as stage_work counts it, over a matrix product's in equal time."""

SCORED_LOGIT_WORK = 400.0
"""Operations that scoring one logit of one model takes as long as."""


def estimate_evaluation(
    models: Sequence[Model], windows: tuple[int, int], execution: Execution | None = None
) -> Cost:
    """The cost of scoring windows (count, length) with models, a reference among them.

    Raises: UsageError for a plan that the executor does not run.
    """
    execution = execution or Execution()
    native = execution.executor is ExecutorKind.NATIVE
    plans = [model.plan for model in models]
    count, length = windows
    work = sum(stage_work(stage, count * length, length) for plan in plans for stage in plan.stages)
    if native:
        work /= NATIVE_RATE
    work += SCORED_LOGIT_WORK * count * length * plans[0].vocabulary * len(plans)
    memory = _native_bytes(models, windows, execution) if native else _array_bytes(plans, windows)
    return Cost(FIXED_BYTES + memory, work / measured_rate())


def estimating(
    listener: CostListener,
) -> Callable[[Sequence[Model], Windows, Execution], None]:
    """What `evaluate` is to call as it begins, so that a listener is told the cost."""

    def begin(models: Sequence[Model], windows: Windows, execution: Execution) -> None:
        count, length = windows.tokens.shape
        listener(estimate_evaluation(models, (count, length), execution))

    return begin


def _native_bytes(models: Sequence[Model], windows: tuple[int, int], execution: Execution) -> int:
    count, length = windows
    vocabulary = models[0].plan.vocabulary
    settings = engine_settings(execution, vocabulary, length)
    lane = sum(lane_bytes(model, settings) for model in models)
    block = BLOCK_ARRAYS * 4 * block_tokens(vocabulary, length) * vocabulary
    weights = sum(model.checkpoint.tensors.size_bytes() for model in models)
    return weights + lane_count(lane, count) * (lane + block)


def _array_bytes(plans: Sequence[Plan], windows: tuple[int, int]) -> int:
    count, length = windows
    chunk = min(count, max(1, CHUNK_TOKENS // length)) * length
    memory = LOGIT_ARRAYS * 4 * length * plans[0].vocabulary * processors()
    return memory + sum(
        _weight_bytes(plan) + 4 * chunk * plan.tensors()[0].shape[-1] for plan in plans
    )


def _weight_bytes(plan: Plan) -> int:
    """Decoded weights in memory: all of a small model, the largest stage of another."""
    whole = 4 * plan.parameters()
    if whole <= KEPT_BYTES:
        return whole
    return max(4 * sum(prod(spec.shape) for spec in stage.tensors()) for stage in plan.stages)
