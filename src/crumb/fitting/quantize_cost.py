"""What a quantization will cost: memory, time, bytes on disk, before it starts.

In: a Plan, the format of each matrix, calibration tokens, settings. Out: a Cost.
Work is counted in floating-point operations; time is work over the rate of a matrix product
measured on the spot. Refuses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import ceil, prod

import numpy as np

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.fitting.gradient_cost import (
    gradient_disk_bytes,
    gradient_memory_bytes,
    gradient_work,
)
from crumb.fitting.stage_cost import stage_work
from crumb.fitting.training_cost import (
    together_bytes,
    together_disk_bytes,
    together_work,
    training_bytes,
    training_work,
)
from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.float_columns import columns_shape
from crumb.formats.packed_tensor import stored_shape
from crumb.kernels.threads import single_blas
from crumb.machine.processors import processors
from crumb.operations.embed import Embed
from crumb.operations.experts import Experts
from crumb.operations.headlinear import HeadLinear
from crumb.operations.linear import Linear
from crumb.operations.operation import TensorSpec
from crumb.progress import Cost
from crumb.run.lanes import lane_count
from crumb.run.whole_texts import lane_bytes, plan_batch, texts_together
from crumb.solve.columns import SAMPLE_ROWS
from crumb.solve.problem import Method, Scales, SolveSettings

SEARCH_WORK = {ZeroKind.FIXED: 1100.0, ZeroKind.VARIABLE: 1700.0, ZeroKind.MINIMUM: 650.0}
"""Search of scales: operations per weight, as a matrix product's operations cost time."""

SHARED_WORK = {ZeroKind.FIXED: 1400.0, ZeroKind.MINIMUM: 2500.0}
"""Fit of super-blocks to what the search found: likewise."""

SWEEP_WORK = 1500.0
"""Column sweep, rounding, packing and storing: likewise, per weight."""

CHOOSING_WORK = 40 * SWEEP_WORK
"""Roundings that say which columns are floats: likewise, per weight of their sample."""

ROWS_AT_ONCE = 8192
"""Rows of a matrix that are solved together, whole tiles: bounds the memory of wide embeddings."""

FIXED_BYTES = 150 << 20
"""The interpreter, its libraries and small buffers."""


def matrix_work(spec: TensorSpec, format: Format, settings: SolveSettings) -> float:
    """Operations of choosing one matrix's codes, statistics apart."""
    rows, columns = spec.shape
    search = SEARCH_WORK[format.zero] if settings.scales is Scales.SEARCH else 0.0
    if search and format.row.super_block is not None:
        search += SHARED_WORK[format.zero]
    once = rows * columns * (SWEEP_WORK + search)
    if settings.keep_columns:
        once += CHOOSING_WORK * min(rows, SAMPLE_ROWS) * columns
    if settings.method is not Method.GPTQ:
        return once
    if settings.keep_columns:
        once += 2.0 * float(columns) ** 3 / 3
    passes = 1 + (settings.refits if settings.scales is Scales.SEARCH else 0)
    refining = settings.refinements * rows * columns * (SWEEP_WORK + 6 * columns)
    return passes * (once + rows * columns**2) + rows * columns**2 + refining


def input_work(in_features: int, tokens: int) -> float:
    """Operations of one input's statistics and their factor (f64 counts double)."""
    return float(in_features) ** 2 * tokens + 2.0 * float(in_features) ** 3 / 3


def correction_work(in_features: int, tokens: int) -> float:
    """Operations of what moves targets: two moments of two streams, two systems solved."""
    return 4.0 * float(in_features) ** 2 * tokens + 2.0 * float(in_features) ** 3


def expert_work(experts: Experts, tokens: int) -> float:
    """Operations of the statistics of all experts' inputs, no more borrowed than one has."""
    each = tokens * experts.used // experts.experts
    widths = (experts.in_features, experts.inner)
    statistics = sum(input_work(width, each) for width in widths)
    again = 4.0 * each * experts.in_features * experts.inner
    return experts.experts * (statistics + again)


def total_work(
    plan: Plan, formats: Mapping[str, Format], tokens: tuple[int, int], settings: SolveSettings
) -> float:
    """Operations of a whole quantization; tokens is (sequences, length)."""
    shapes = {spec.name: spec for spec in plan.tensors()}
    work = sum(matrix_work(shapes[name], format, settings) for name, format in formats.items())
    if settings.method is not Method.GPTQ:
        return work
    if settings.weighs_tokens:
        work += gradient_work(plan, tokens)
    count = tokens[0] * tokens[1]
    work += together_work(plan, formats, settings, tokens[1])
    for stage in plan.stages:
        if stage.name != "head":
            streams = 2 if settings.corrects else 1  # the float model beside the quantized one
            work += streams * stage_work(stage, count, tokens[1])
            work += training_work(stage, formats, settings, tokens[1])
        work += sum(expert_work(op, count) for op in stage.operations if isinstance(op, Experts))
        work += sum(
            op.heads * input_work(op.in_features, count)
            for op in stage.operations
            if isinstance(op, HeadLinear)
        )
        inputs = {op.input: op.in_features for op in stage.operations if isinstance(op, Linear)}
        work += sum(input_work(width, count) for width in inputs.values())
        if settings.corrects:
            work += sum(correction_work(width, count) for width in inputs.values())
        specs = [op.tensors()[0] for op in stage.operations if isinstance(op, Embed)]
        work += sum(
            embedding_work(plan, spec, tokens)
            for spec in specs
            if spec.name in formats and settings.solves_embedding(formats[spec.name])
        )
    return work


def embedding_work(plan: Plan, spec: TensorSpec, tokens: tuple[int, int]) -> float:
    """Operations of an embedding's statistics; a tied head runs the tokens through the model."""
    work = input_work(spec.shape[1], spec.shape[0])
    if spec.name in {linear.weight for linear in plan.linears()}:
        work += sum(stage_work(each, tokens[0] * tokens[1], tokens[1]) for each in plan.stages[:-1])
    return work


def measured_rate() -> float:
    """Operations per second of f32 matrix products on all processors, now.

    The best of a few on one thread, times the processors: a busy neighbour slows only some.
    """
    matrix, seconds = np.ones((512, 512), np.float32), []
    with single_blas():
        for _ in range(8):
            begin = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - begin)
    return processors() * 2.0 * 512**3 / min(seconds)


def estimate(
    checkpoint: Checkpoint,
    formats: Mapping[str, Format],
    tokens: tuple[int, int],
    settings: SolveSettings,
) -> Cost:
    """The cost of a whole quantization; tokens is (sequences, length)."""
    plan = checkpoint.plan
    return Cost(
        peak_bytes(plan, formats, tokens, settings),
        total_work(plan, formats, tokens, settings) / measured_rate(),
        working_bytes(checkpoint, formats, tokens, settings),
        output_bytes(checkpoint, formats, settings.keep_columns),
    )


def peak_bytes(
    plan: Plan, formats: Mapping[str, Format], shape: tuple[int, int], settings: SolveSettings
) -> int:
    """Peak memory of a quantization: statistics, activations, one matrix, the embedding.

    `shape` is that of the calibration tokens, (sequences, length).
    """
    tokens = shape[0] * shape[1]
    peak = gradient_memory_bytes(plan, shape) if settings.weighs_tokens else 0
    peak = max(peak, together_bytes(plan, formats, settings, shape[1]))
    for index, stage in enumerate(plan.stages):
        widths = [1]
        for operation in stage.operations:
            solved = formats.get(operation.weight) if isinstance(operation, Embed) else None
            if isinstance(operation, Embed) and solved and settings.solves_embedding(solved):
                columns, rows = operation.features, min(operation.rows, ROWS_AT_ONCE)
                peak = max(peak, 24 * rows * columns + 24 * columns**2)
            if isinstance(operation, Linear):
                columns, rows = operation.in_features, min(operation.out_features, ROWS_AT_ONCE)
                solve = 24 * rows * columns
                square = 40 if settings.keep_columns else 20  # a factor with these columns last
                square += 4 if settings.corrects else 0  # what moves the targets
                statistics = square * columns**2 if settings.method is Method.GPTQ else 0
                moments = 28 * columns**2 if settings.corrects else 0  # of both streams, solved
                peak = max(peak, max(solve + statistics, moments) + 8 * tokens * columns)
                widths += [operation.in_features, operation.out_features]
            if isinstance(operation, Experts):
                peak = max(peak, expert_bytes(operation, tokens, settings))
                widths.append(operation.in_features)
            if isinstance(operation, HeadLinear):
                widths += [operation.heads * operation.in_features]
                widths += [operation.heads * operation.out_features]
        if stage.name != "head" and settings.method is Method.GPTQ:
            linears = 4 * sum(prod(spec.shape) for spec in stage.tensors() if spec.matrix)
            flowing = 4 * tokens * (max(widths) + widths[-1])
            training = training_bytes(stage, formats, widths[-1], tokens) if settings.trains else 0
            lanes = lanes_bytes(plan, index, shape)
            beside = flowing + lanes if settings.corrects else 0  # the float model
            peak = max(peak, beside + linears + flowing + max(lanes, training))
    return peak + FIXED_BYTES


def expert_bytes(experts: Experts, tokens: int, settings: SolveSettings) -> int:
    """Memory of one expert at work: its matrices, the rows it gets, H of its block beside its own.

    A matrix and what solves it; the tokens flow apart.
    """
    wide, narrow = experts.in_features, experts.inner
    solve = 24 * wide * narrow
    if settings.method is not Method.GPTQ:
        return solve
    rows = tokens * experts.used // experts.experts
    again = 12 * wide * narrow + 4 * rows * (wide + 4 * narrow)
    return solve + 16 * max(wide, narrow) ** 2 + 8 * wide**2 + again + 4 * tokens * wide


def lanes_bytes(plan: Plan, index: int, shape: tuple[int, int]) -> int:
    """Memory of the engines that run the calibration through a stage."""
    texts = texts_together(shape[1])
    lane = lane_bytes(plan, index, *plan_batch(plan, texts, shape[1]))
    return lane_count(lane, -(-shape[0] // texts)) * lane


def packed_bytes(plan: Plan, formats: Mapping[str, Format]) -> int:
    """Bytes of the quantized matrices, their layout's padding included."""
    return sum(
        prod(stored_shape(formats[spec.name], spec.shape[0], spec.shape[1]))
        for spec in plan.tensors()
        if spec.name in formats
    )


def most_column_bytes(plan: Plan, formats: Mapping[str, Format], keep_columns: float) -> int:
    """Bytes of float columns, as many as may be of each matrix that is no embedding."""
    operations = (each for stage in plan.stages for each in stage.operations)
    tables = {each.weight for each in operations if isinstance(each, Embed)}
    counts = {
        spec.shape: ceil(keep_columns * spec.shape[1])
        for spec in plan.tensors()
        if spec.name in formats
    }
    return sum(
        4 * counts[spec.shape]
        + 2 * prod(columns_shape((spec.shape[0], spec.shape[1]), counts[spec.shape]))
        for spec in plan.tensors()
        if spec.name in formats and spec.name not in tables
    )


def output_bytes(
    checkpoint: Checkpoint, formats: Mapping[str, Format], keep_columns: float = 0.0
) -> int:
    """Bytes of all arrays in the quantized weight files; float columns as many as may be."""
    floats = [spec.name for spec in checkpoint.plan.tensors() if spec.name not in formats]
    small = sum(checkpoint.tensors.entry(name).size_bytes for name in floats)
    plan = checkpoint.plan
    return packed_bytes(plan, formats) + most_column_bytes(plan, formats, keep_columns) + small


def working_bytes(
    checkpoint: Checkpoint,
    formats: Mapping[str, Format],
    tokens: tuple[int, int],
    settings: SolveSettings,
) -> int:
    """Most bytes on disk: at the end each matrix lies both in its own file and in the output.

    Before, there is the pass that weighs the tokens.
    """
    copies = 2 if settings.trains else 1  # solved codes, and trained ones beside them
    plan = checkpoint.plan
    columns = most_column_bytes(plan, formats, settings.keep_columns)
    tensors = copies * (packed_bytes(plan, formats) + columns)
    at_end = output_bytes(checkpoint, formats, settings.keep_columns) + tensors
    at_end += together_disk_bytes(plan, formats, settings)
    weighs = settings.weighs_tokens
    return max(at_end, gradient_disk_bytes(plan, tokens) if weighs else 0)
