"""Two ways over the windows of a text, one for each executor.

In: models, windows of tokens. Out: what a function makes of each window's logits, in order; it gets
them in blocks of rows, the same for every model, and may overwrite them.
The native walk has lanes, each with an engine for every model, and gives a window to a free lane.
The array walk runs chunks of windows stage by stage. Refuses what the executors refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan, Stage
from crumb.evaluation.execution import Execution, ExecutorKind, block_tokens
from crumb.kernels.threads import parallel_map
from crumb.operations.operation import Array, Context, as_numpy
from crumb.run.array_executor import run_stage
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.lanes import Lanes
from crumb.run.memory_plan import EngineSettings
from crumb.run.model import Model, start_buffers
from crumb.run.program import plan_engine

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]
Result = TypeVar("Result")
Progress = Callable[[int, int], None]

Blocks = Generator[Floats]
"""Logits that predict a window's scored tokens, (rows, vocabulary) at a time."""

Visit = Callable[[int, Sequence[Blocks]], Result]
"""Told a window's number and its blocks by model."""

CHUNK_TOKENS = 16_384
"""Tokens whose hidden states the array walk holds at once."""


def walk(
    models: Sequence[Model],
    executions: Sequence[Execution],
    windows: Tokens,
    first_scored: int,
    visit: Visit[Result],
    progress: Progress,
) -> list[Result]:
    """visit(index, blocks by model) for every window; progress(done, total) counts them.

    Shapes: windows (count, length). All executions are of one executor.
    """
    if executions[0].executor is ExecutorKind.ARRAY:
        return _walk_array(models, windows, first_scored, visit, progress)
    return _walk_native(models, executions, windows, first_scored, visit, progress)


def engine_settings(execution: Execution, vocabulary: int, length: int) -> EngineSettings:
    """An engine for one window at a time."""
    rows = block_tokens(vocabulary, length)
    return EngineSettings(
        context_tokens=length,
        step_tokens=rows,
        logits_rows=rows,
        cache=execution.cache,
        activations=execution.activations,
        threads=1,
    )


def lane_bytes(model: Model, settings: EngineSettings) -> int:
    """What one more engine of a model takes; all share the mapped weights. Raises: UsageError."""
    memory = plan_engine(model.checkpoint, settings)
    return memory.total_bytes - memory.weights_bytes


def _walk_native(
    models: Sequence[Model],
    executions: Sequence[Execution],
    windows: Tokens,
    first_scored: int,
    visit: Visit[Result],
    progress: Progress,
) -> list[Result]:
    count, length = windows.shape
    settings = [
        engine_settings(execution, model.plan.vocabulary, length)
        for model, execution in zip(models, executions, strict=True)
    ]

    def make(threads: int) -> list[Engine]:
        each = zip(models, settings, strict=True)
        return [Engine(model.checkpoint, replace(own, threads=threads)) for model, own in each]

    def one(engines: list[Engine], index: int) -> Result:
        blocks = [_blocks(each, windows[index], first_scored) for each in engines]
        try:
            return visit(index, blocks)
        finally:
            for each in blocks:  # one that an error left holds pages of its engine
                each.close()

    lanes = Lanes(make, sum(map(lane_bytes, models, settings)), count)
    return lanes.map(one, range(count), lambda done: progress(done, count))


def _blocks(engine: Engine, window: Tokens, first_scored: int) -> Blocks:
    """The window in steps: up to the first scored token without logits, then with."""
    source, window, first_scored = apart(engine.plan, window, first_scored)
    tokens = window.tolist()
    last = len(tokens) - 1  # it predicts nothing that is scored
    sequence = engine.begin(tokens, reuse=False, source=source.tolist())
    begin = 0
    try:
        while begin < last:
            scored = begin >= first_scored - 1
            stop = last if scored else first_scored - 1
            end = min(begin + engine.settings.step_tokens, stop)
            rows = Rows.ALL if scored else Rows.NONE
            logits = engine.run([StepPart(sequence, tokens[begin:end], rows)])
            if scored:
                yield logits
            begin = end
    finally:
        engine.end(sequence)


def apart(plan: Plan, window: Tokens, first_scored: int) -> tuple[Tokens, Tokens, int]:
    """What is read of a window, what is written, and the first of that which is scored.

    Of a model with an encoder all is scored but the first: what stands before that is read.
    """
    if not plan.inputs:
        return window[:0], window, first_scored
    return window[: first_scored - 1], window[first_scored - 1 :], 1


def _walk_array(
    models: Sequence[Model],
    windows: Tokens,
    first_scored: int,
    visit: Visit[Result],
    progress: Progress,
) -> list[Result]:
    count, length = windows.shape
    per_chunk = max(1, CHUNK_TOKENS // length)
    results: list[Result] = []
    for begin in range(0, count, per_chunk):
        chunk = windows[begin : begin + per_chunk]
        hidden = [_hidden(model, chunk, first_scored) for model in models]

        def one(
            index: int, begin: int = begin, hidden: list[list[dict[str, Array]]] = hidden
        ) -> Result:
            states = [each[index] for each in hidden]
            blocks = [_head(*pair, first_scored) for pair in zip(models, states, strict=True)]
            return visit(begin + index, blocks)

        results.extend(parallel_map(one, range(len(chunk))))
        progress(begin + len(chunk), count)
    return results


def _hidden(model: Model, windows: Tokens, first_scored: int) -> list[dict[str, Array]]:
    """What the head reads, for each window: all stages but the last, one stage at a time."""
    flowing = []
    for each in windows:
        source, window, _ = apart(model.plan, each, first_scored)
        sources = {name: model.as_array(source[None, :]) for name in model.plan.inputs}
        flowing.append(start_buffers(model.as_array(window[None, :])) | sources)
    for stage in model.plan.stages[:-1]:
        context = Context(model.stage_weights(stage))

        def one(
            buffers: dict[str, Array], stage: Stage = stage, context: Context = context
        ) -> dict[str, Array]:
            with np.errstate(over="ignore", invalid="ignore"):  # refused where the logits are
                return buffers | run_stage(stage, dict(buffers), context)

        flowing = parallel_map(one, flowing)
    return flowing


def _head(model: Model, hidden: dict[str, Array], first_scored: int) -> Blocks:
    stage = model.plan.stages[-1]
    context = Context(model.stage_weights(stage))
    with np.errstate(over="ignore", invalid="ignore"):
        logits: Floats = as_numpy(run_stage(stage, dict(hidden), context)["logits"][0])
    first_scored = 1 if model.plan.inputs else first_scored
    yield logits[first_scored - 1 : len(logits) - 1]
