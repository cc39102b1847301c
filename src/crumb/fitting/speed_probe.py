"""How fast a model would run here, from a short run of a few of its blocks without its weights.

In: a Plan, the formats of its matrices, EngineSettings. Out: tokens per second of a prompt and of
decoding. The engine runs a few blocks of each kind on zeros, as many as no cache holds, and the
time of a block counts as often as the model has it. A head runs with some of its rows.
Refuses nothing: a plan whose blocks do not run alone has no Speed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np

from crumb.architectures.plan import Plan, Stage
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry, StoredPacked, TensorMap
from crumb.errors import CrumbError
from crumb.files.model_files import MadeFiles
from crumb.formats.catalog import Format
from crumb.formats.packed_tensor import stored_shape
from crumb.operations.embed import Embed
from crumb.operations.linear import Linear
from crumb.operations.operation import Operation, TensorSpec
from crumb.run.engine import Engine, StepPart
from crumb.run.memory_plan import EngineSettings

PROMPT_TOKENS = 256
"""Of the prompt that is read, in one step; decoding goes on behind it."""

STEPS = 16
"""Steps that are decoded at most, with the head and without."""

SECONDS = 0.03
"""After which no more steps are decoded."""

UNCACHED_BYTES = 64 << 20
"""Weights that a step of the probe reads at least, where the model has so many."""

HEAD_ROWS = 8192
"""Rows of the head that run; the others are counted with them."""

FLOAT = np.dtype(ml_dtypes.bfloat16)
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Speed:
    """What is expected of this machine."""

    prompt_tokens_per_second: float  # of a prompt of PROMPT_TOKENS
    decode_tokens_per_second: float  # of all sequences together, behind such a prompt


@dataclass(frozen=True)
class StepSeconds:
    """One prompt, and one step of decoding."""

    prompt: float
    decode: float

    def __add__(self, other: StepSeconds) -> StepSeconds:
        return StepSeconds(self.prompt + other.prompt, self.decode + other.decode)

    def times(self, count: float) -> StepSeconds:
        return StepSeconds(self.prompt * count, self.decode * count)


def probe_speed(
    plan: Plan,
    formats: Mapping[str, Format],
    dtypes: Mapping[str, np.dtype[Any]],
    settings: EngineSettings,
) -> Speed | None:
    """What a model would do; None where its blocks do not run alone. It takes a tenth of a second.

    `formats`: of the matrices that run packed. `dtypes`: of the floats.
    """
    if plan.max_positions <= 2 * STEPS:
        return None
    sequences = settings.sequences
    small = replace(
        settings,
        context_tokens=min(plan.max_positions, PROMPT_TOKENS + 2 * STEPS),
        logits_rows=max(sequences, settings.logits_rows),
        step_tokens=max(PROMPT_TOKENS, sequences),
    )
    try:
        with TemporaryDirectory(prefix="crumb-probe-") as folder:
            zeros = _Zeros(Path(folder) / "zeros", formats, dtypes)
            total = _model_seconds(plan, zeros, small)
    except CrumbError:
        return None
    return Speed(_prompt_tokens(small) / total.prompt, sequences / total.decode)


def _prompt_tokens(settings: EngineSettings) -> int:
    """Tokens that leave room for the steps."""
    assert settings.context_tokens is not None, "of the probe"
    return settings.context_tokens - 2 * STEPS


def _model_seconds(plan: Plan, zeros: _Zeros, settings: EngineSettings) -> StepSeconds:
    """Seconds of all blocks and the head. Raises: CrumbError."""
    total = StepSeconds(0.0, 0.0)
    head_seconds: StepSeconds | None = None
    for blocks in _kinds(plan.stages[1:-1], zeros.formats):
        few = blocks[: _count(blocks, zeros)]
        part = _part(plan, few)
        with_head, without = _measured(zeros.checkpoint(part), settings)
        total += without.times(len(blocks) / len(few))
        if head_seconds is None:
            rows = _head(plan).out_features / _head(part).out_features
            head = StepSeconds(
                max(0.0, with_head.prompt - without.prompt),
                max(0.0, with_head.decode - without.decode),
            )
            head_seconds = head.times(rows)
            total += head_seconds
    return total


def _kinds(stages: tuple[Stage, ...], formats: Mapping[str, Format]) -> list[list[Stage]]:
    """Blocks that cost the same together."""
    kinds: dict[Any, list[Stage]] = {}
    for stage in stages:
        kinds.setdefault(tuple(_costs(stage, formats)), []).append(stage)
    return list(kinds.values())


def _costs(stage: Stage, formats: Mapping[str, Format]) -> Iterator[Any]:
    """What decides the time of a block: numbers and flags of its operations, formats."""
    for operation in stage.operations:
        yield operation.word
        for each in fields(operation):
            value = getattr(operation, each.name)
            if not isinstance(value, str | tuple):
                yield each.name, repr(value)
        yield tuple(formats.get(spec.name) for spec in operation.tensors() if spec.matrix)


def _count(blocks: list[Stage], zeros: _Zeros) -> int:
    """Blocks that read UNCACHED_BYTES together."""
    size = sum(zeros.entry(spec, 0).size_bytes for spec in blocks[0].tensors() if spec.matrix)
    return max(1, min(len(blocks), -(-UNCACHED_BYTES // max(size, 1))))


def _part(plan: Plan, blocks: list[Stage]) -> Plan:
    """A plan of some blocks, its vocabulary cut to HEAD_ROWS."""
    rows = min(plan.vocabulary, HEAD_ROWS)
    head = _head(plan)
    first, last = plan.stages[0], plan.stages[-1]

    def cut(operation: Operation) -> Operation:
        if operation is head:
            return replace(head, out_features=rows)
        if isinstance(operation, Embed) and operation.rows == plan.vocabulary:
            return replace(operation, rows=rows)
        return operation

    ends = (replace(each, operations=tuple(map(cut, each.operations))) for each in (first, last))
    embedding, logits = ends
    return Plan(plan.family, rows, plan.max_positions, (embedding, *blocks, logits), plan.inputs)


def _head(plan: Plan) -> Linear:
    """The last matrix product of a plan."""
    return [op for op in plan.stages[-1].operations if isinstance(op, Linear)][-1]


def _measured(checkpoint: Checkpoint, settings: EngineSettings) -> tuple[StepSeconds, StepSeconds]:
    """Seconds with the head and without. Raises: CrumbError."""
    engine = Engine(checkpoint, settings)
    tokens = [1] * _prompt_tokens(settings)
    sequences = [engine.begin(tokens, reuse=False) for _ in range(settings.sequences)]
    single = [StepPart(each, (1,)) for each in sequences]
    for part in single:  # pages of the file and of the buffers are touched
        _seconds(engine, [part])
    prompt = _seconds(engine, [StepPart(sequences[0], tokens[1:])])
    whole = _best(engine, single, head=True)
    features = min(whole, _best(engine, single, head=False))
    head = whole - features
    return StepSeconds(prompt, whole), StepSeconds(max(prompt - head, 0.0), features)


def _best(engine: Engine, parts: list[StepPart], head: bool) -> float:
    """Seconds of a step: the best of some, since a busy neighbour slows only some."""
    begin, seconds = time.perf_counter(), [_seconds(engine, parts, head)]
    while len(seconds) < STEPS and time.perf_counter() - begin < SECONDS:
        seconds.append(_seconds(engine, parts, head))
    return min(seconds)


def _seconds(engine: Engine, parts: list[StepPart], head: bool = True) -> float:
    begin = time.perf_counter()
    if head:
        engine.run(parts)
    else:
        engine.run_to_features(parts)
    return time.perf_counter() - begin


@dataclass(frozen=True)
class _Zeros:
    """A file of holes in which tensors lie."""

    path: Path
    formats: Mapping[str, Format]
    dtypes: Mapping[str, np.dtype[Any]]

    def checkpoint(self, plan: Plan) -> Checkpoint:
        """One whose tensors lie in the file, one behind the other."""
        entries: dict[str, Entry] = {}
        at = 0
        for spec in plan.tensors():
            entries[spec.name] = self.entry(spec, at)
            at += -(-entries[spec.name].size_bytes // PAGE_BYTES) * PAGE_BYTES
        self.path.touch()
        os.truncate(self.path, max(at, self.path.stat().st_size))
        files = MadeFiles(self.path, {})
        return Checkpoint(self.path, {}, plan, TensorMap(self.path, entries), (self.path,), files)

    def entry(self, spec: TensorSpec, at: int) -> Entry:
        """Of a tensor that begins at this byte."""
        format = self.formats.get(spec.name)
        if format is None:
            dtype = self.dtypes.get(spec.name, FLOAT)
            return StoredArray(self.path, dtype, spec.shape, at, dtype.itemsize * prod(spec.shape))
        out_features, in_features = spec.shape
        shape = stored_shape(format, out_features, in_features)
        tiles = StoredArray(self.path, np.dtype(np.uint8), shape, at, prod(shape))
        return StoredPacked(format, (out_features, in_features), tiles)
