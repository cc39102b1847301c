"""How fast a model would run here, from a short run of a few of its blocks without its weights.

In: a Plan, the formats of its matrices, EngineSettings, the tokens of a prompt. Out: tokens per
second of that prompt and of decoding behind it. The engine runs a few blocks of each kind on zeros,
as many as no cache holds and small kinds together, near the beginning and behind some tokens. What
attention takes grows with the tokens it reads; a block counts as often as the model has it.
Refuses nothing: a plan whose blocks do not run alone has no Speed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
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
from crumb.operations.table import row_of
from crumb.run.engine import Engine, EngineSequence, StepPart
from crumb.run.memory_plan import EngineSettings

CHUNK_TOKENS = 256
"""Of each of the two steps that read a prompt; decoding goes on behind them."""

STEPS = 16
"""Steps that are decoded at most, each time."""

SECONDS = 0.03
"""After which no more steps are decoded."""

UNCACHED_BYTES = 64 << 20
"""Weights that a step of the probe reads at least, where the model has so many."""

HEAD_ROWS = 8192
"""Rows of the head that run; the others are counted with them."""

CLOCK = time.perf_counter
"""What seconds are read from."""

FLOAT = np.dtype(ml_dtypes.bfloat16)
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Speed:
    """What is expected of this machine."""

    prompt_tokens_per_second: float
    decode_tokens_per_second: float  # of all sequences together, each behind such a prompt


@dataclass(frozen=True)
class StepSeconds:
    """Steps of some blocks."""

    prompt: float  # a chunk of CHUNK_TOKENS, at the beginning
    prompt_behind: float  # behind as many
    decode: float  # a token of every sequence, near its beginning
    decode_behind: float  # likewise, one sequence behind two chunks


def probe_speed(
    plan: Plan,
    formats: Mapping[str, Format],
    dtypes: Mapping[str, np.dtype[Any]],
    settings: EngineSettings,
    prompt_tokens: int = CHUNK_TOKENS,
) -> Speed | None:
    """What a model would do; None where its blocks do not run alone. It takes tenths of a second.

    `formats`: of the matrices that run packed. `dtypes`: of the floats. The sequences of the
    settings decode together, each behind a prompt of so many tokens.
    """
    chunk = min(CHUNK_TOKENS, (plan.max_positions - 4 * STEPS) // 2)
    if chunk <= 0:
        return None
    sequences = settings.sequences
    small = replace(
        settings,
        context_tokens=2 * chunk + 4 * STEPS,
        logits_rows=max(sequences, settings.logits_rows),
        step_tokens=max(chunk, sequences),
    )
    try:
        with TemporaryDirectory(prefix="crumb-probe-") as folder:
            zeros = _Zeros(Path(folder) / "zeros", formats, dtypes)
            prompt, decode = _model_seconds(plan, zeros, small, prompt_tokens)
    except CrumbError:
        return None
    return Speed(prompt_tokens / prompt, sequences / decode)


def _model_seconds(
    plan: Plan, zeros: _Zeros, settings: EngineSettings, prompt_tokens: int
) -> tuple[float, float]:
    """Seconds of the prompt, and of a step of decoding. Raises: CrumbError."""
    prompt = decode = 0.0
    chunk = _chunk_tokens(settings)
    for number, (blocks, times) in enumerate(_samples(plan.stages[1:-1], zeros)):
        part = _part(plan, blocks)
        head, seconds = _measured(zeros.checkpoint(part), settings)
        of_decode = decode_seconds(blocks, seconds, chunk, prompt_tokens, settings.sequences)
        prompt += times * prompt_seconds(blocks, seconds, chunk, prompt_tokens)
        decode += times * of_decode
        if number == 0:
            of_rows = head * _head(plan).out_features / _head(part).out_features
            prompt += of_rows
            decode += of_rows
    return prompt, decode


def prompt_seconds(blocks: Sequence[Stage], seconds: StepSeconds, chunk: int, tokens: int) -> float:
    """Of a prompt, from a chunk at the beginning and one behind it.

    What the second takes longer is attention's, and grows as its work does; a chunk's own tokens
    read half of it on the average.
    """
    behind = max(0.0, seconds.prompt_behind - seconds.prompt) / max(reach(blocks, chunk), 1.0)
    alone = max(0.0, seconds.prompt - behind * reach(blocks, chunk / 2))
    total = 0.0
    for begin in range(0, tokens, chunk):
        count = min(chunk, tokens - begin)
        total += count / chunk * (alone + behind * reach(blocks, begin + count / 2))
    return total


def decode_seconds(
    blocks: Sequence[Stage], seconds: StepSeconds, chunk: int, past: int, sequences: int
) -> float:
    """Of a token of every sequence, each behind so many, likewise."""
    behind = max(0.0, seconds.decode_behind - seconds.decode) / max(reach(blocks, 2 * chunk), 1.0)
    return seconds.decode + sequences * behind * reach(blocks, past)


def reach(blocks: Sequence[Stage], past_tokens: float) -> float:
    """Multiply-adds of a token that come of the tokens before it."""
    costs = [(row_of(each).cost, each) for stage in blocks for each in stage.operations]
    far, near = (
        sum(cost(each, tokens).multiply_adds for cost, each in costs) for tokens in (past_tokens, 0)
    )
    return far - near


def _chunk_tokens(settings: EngineSettings) -> int:
    """Tokens that leave room for the steps."""
    assert settings.context_tokens is not None, "of the probe"
    return (settings.context_tokens - 4 * STEPS) // 2


def _samples(stages: tuple[Stage, ...], zeros: _Zeros) -> Iterator[tuple[Sequence[Stage], float]]:
    """Blocks that run together, and how often their time counts.

    Kinds that have fewer than UNCACHED_BYTES each run together, all of them, in their order:
    one kind alone would lie in a cache that the whole model overflows.
    """
    small: set[int] = set()
    for blocks in _kinds(stages, zeros.formats):
        size = sum(zeros.entry(spec, 0).size_bytes for spec in blocks[0].tensors() if spec.matrix)
        count = max(1, -(-UNCACHED_BYTES // max(size, 1)))
        if count >= len(blocks):
            small.update(map(id, blocks))
        else:
            yield blocks[:count], len(blocks) / count
    if small:
        yield [stage for stage in stages if id(stage) in small], 1.0


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


def _part(plan: Plan, blocks: Sequence[Stage]) -> Plan:
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


def _measured(checkpoint: Checkpoint, settings: EngineSettings) -> tuple[float, StepSeconds]:
    """Seconds of the head, and of the blocks alone. Raises: CrumbError."""
    engine, chunk = Engine(checkpoint, settings), _chunk_tokens(settings)
    sequences = [engine.begin([1] * chunk, reuse=False) for _ in range(settings.sequences)]
    single = [StepPart(each, (1,)) for each in sequences]
    for part in single:  # pages of the file and of the buffers are touched
        _seconds(engine, [part])
    whole = _best(engine, single, head=True)
    near = min(whole, _best(engine, single, head=False))
    prompt = _chunk_seconds(engine, sequences[0], chunk)
    behind = _chunk_seconds(engine, sequences[0], chunk)
    far = max(near, _best(engine, single, head=False))
    return whole - near, StepSeconds(prompt, max(prompt, behind), near, far)


def _chunk_seconds(engine: Engine, sequence: EngineSequence, chunk: int) -> float:
    """Seconds of the sequence's next chunk, the better of two times where it can be taken back."""
    part = StepPart(sequence, (1,) * chunk)
    seconds = _seconds(engine, [part], head=False)
    if engine.states is not None:
        return seconds
    engine.cut(sequence, chunk)
    return min(seconds, _seconds(engine, [part], head=False))


def _best(engine: Engine, parts: list[StepPart], head: bool) -> float:
    """Seconds of a step: the best of some, since a busy neighbour slows only some."""
    begin, seconds = CLOCK(), [_seconds(engine, parts, head)]
    while len(seconds) < STEPS and CLOCK() - begin < SECONDS:
        seconds.append(_seconds(engine, parts, head))
    return min(seconds)


def _seconds(engine: Engine, parts: list[StepPart], head: bool = True) -> float:
    begin = CLOCK()
    if head:
        engine.run(parts)
    else:
        engine.run_to_features(parts)
    return CLOCK() - begin


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
