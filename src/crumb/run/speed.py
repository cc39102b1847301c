"""How fast a model reads and writes here, beside what this machine could do at best right now.

In: a checkpoint, the sizes to sweep. Out: Measurements: seconds of every repeat, tokens per second,
and the share of the limit measured right after each repeat: of the multiply-adds in registers for
reading a prompt, of the memory's read bandwidth for decoding. Ratios of one run drift less than
rates. Decoding is greedy; each repeat begins with an empty cache. A prompt is what an encoder
reads, where there is one, and its first answer that of the decoder. Refuses what does not fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import UsageError
from crumb.kernels.limits import LEAST_ARRAY_BYTES, dot_peak, read_pass, reading_array
from crumb.machine.memory import available_bytes, peak_memory_bytes
from crumb.progress import ProgressClock, ProgressListener, untold
from crumb.run.engine import Engine, EngineSequence, Rows, StepPart
from crumb.run.memory_plan import (
    ActivationKind,
    CacheKind,
    EngineSettings,
    MemoryPlan,
    WeightsKind,
)
from crumb.run.step_work import Work, work_of

PREFILL, DECODE, MIXED = "prefill", "decode", "mixed"

PROMPT_TOKENS = 16
"""What a sequence has read before it decodes, unless an encoder reads: the longest prompt then."""

START = (0,)
"""What an answer to a source begins with here: which token does not matter to the time."""


@dataclass(frozen=True)
class Sweep:
    """What to measure: every combination."""

    prefill: tuple[int, ...] = (1, 16, 64, 256, 1024)  # tokens of a prompt
    decode: tuple[int, ...] = (32,)  # tokens of each sequence
    sequences: tuple[int, ...] = (1, 16)  # that decode together
    threads: tuple[int, ...] = (1,)
    repeat: int = 3
    cache: CacheKind = CacheKind.F16
    activations: ActivationKind = ActivationKind.INT8
    weights: WeightsKind = WeightsKind.MAPPED

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "sequences", "threads"):
            for value in getattr(self, name):
                if not 1 <= value <= 1 << 20:
                    raise UsageError(
                        "a size out of range", where=name, expected="1 to 1048576", found=value
                    )
        if self.repeat < 1:
            raise UsageError("at least one repeat", where="repeat", found=self.repeat)

    def read_before(self, plan: Plan) -> int:
        """Tokens that a sequence has read before it decodes."""
        return max(self.prefill, default=PROMPT_TOKENS) if plan.inputs else PROMPT_TOKENS

    def settings(self, threads: int) -> EngineSettings:
        """Of an engine that has room for all of it."""
        together = max(self.sequences, default=1)
        longest = max(self.prefill, default=1)
        decoded = PROMPT_TOKENS + max(self.decode, default=0)
        steps = -(-longest // EngineSettings.step_tokens) + 1  # a mixed step reads fewer
        mixed = PROMPT_TOKENS + 2 * steps + together
        return EngineSettings(
            context_tokens=max(longest, decoded, mixed),
            sequences=together + 1,
            step_tokens=max(EngineSettings.step_tokens, 2 * together),
            logits_rows=together + 1,
            cache=self.cache,
            activations=self.activations,
            weights=self.weights,
            threads=threads,
        )


@dataclass(frozen=True)
class Measurement:
    """One kind of work, measured some times."""

    kind: str  # prefill, decode or mixed
    threads: int
    sequences: int  # that decode together
    prompt_tokens: int  # read in the measured time
    decode_tokens: int  # of all sequences, in the measured time
    seconds: tuple[float, ...]  # of each repeat
    limit: str  # "multiply-adds" or "bytes read"
    limits: tuple[float, ...]  # per second, measured after each repeat
    shares: tuple[float, ...]  # of the limit

    @property
    def tokens_per_second(self) -> float:
        """Prompt and decoded tokens together; the middle repeat."""
        return (self.prompt_tokens + self.decode_tokens) / median(self.seconds)

    @property
    def share(self) -> float:
        return median(self.shares)

    @property
    def first_token_seconds(self) -> float | None:
        """Until a prompt's first answer, where one was read alone."""
        return median(self.seconds) if self.kind == PREFILL else None


@dataclass(frozen=True)
class SpeedReport:
    """Everything measured in one run."""

    measurements: tuple[Measurement, ...]
    memory: MemoryPlan  # of the engine, with room for all of the sweep
    peak_memory_bytes: int  # of the process, before the array of the limits was made
    array_bytes: int  # that the read bandwidth was measured with
    work: Work
    read_before_tokens: int  # by each sequence that decodes


@dataclass
class _Case:
    """One row of the report while it is measured."""

    kind: str
    sequences: int
    prompt_tokens: int
    decode_tokens: int
    run: Callable[[], float]  # -> seconds
    bytes_read: float  # at least
    products: float
    seconds: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    @property
    def is_reading(self) -> bool:
        return self.kind != DECODE

    def result(self, threads: int) -> Measurement:
        amount = self.products if self.is_reading else self.bytes_read
        pairs = zip(self.seconds, self.limits, strict=True)
        return Measurement(
            self.kind,
            threads,
            self.sequences,
            self.prompt_tokens,
            self.decode_tokens,
            tuple(self.seconds),
            "multiply-adds" if self.is_reading else "bytes read",
            tuple(self.limits),
            tuple(amount / seconds / limit for seconds, limit in pairs),
        )


def measure_speed(
    checkpoint: Checkpoint,
    sweep: Sweep,
    progress: ProgressListener = untold,
) -> SpeedReport:
    """Measure a sweep, thread count by thread count. Raises: UsageError, DoesNotFit."""
    work, clock = work_of(checkpoint), ProgressClock(progress)
    array = _LateArray(checkpoint)
    measured: list[Measurement] = []
    for turn, threads in enumerate(sweep.threads):

        def within(share: float, doing: str, turn: int = turn) -> None:
            clock((turn + share) / len(sweep.threads), doing)

        some, memory = _measure_threads(checkpoint, sweep, threads, work, array, within)
        measured += some
    peak, array_bytes = array.peak_before, array.get().nbytes
    before = sweep.read_before(checkpoint.plan)
    return SpeedReport(tuple(measured), memory, peak, array_bytes, work, before)


class _LateArray:
    """The array of the read bandwidth, made once the engine has touched its own memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._wanted = max(LEAST_ARRAY_BYTES, 2 * checkpoint.tensors.size_bytes())
        self._array: NDArray[np.uint8] | None = None
        self.peak_before = 0

    def get(self) -> NDArray[np.uint8]:
        if self._array is None:
            self.peak_before = peak_memory_bytes()
            self._array = reading_array(min(self._wanted, available_bytes() // 4))
        return self._array


def _measure_threads(
    checkpoint: Checkpoint,
    sweep: Sweep,
    threads: int,
    work: Work,
    late: _LateArray,
    progress: Callable[[float, str], None],
) -> tuple[list[Measurement], MemoryPlan]:
    """All of a sweep with one thread count; its engine ends here."""
    engine = Engine(checkpoint, sweep.settings(threads))
    cases = list(_cases(engine, sweep, work))
    for case in cases:
        case.run()  # pages of the file and of the buffers are touched
    array = late.get()
    rounds = cases * sweep.repeat
    for done, case in enumerate(rounds):
        progress(done / len(rounds), _name(case, threads))
        case.seconds.append(case.run())
        if case.is_reading:
            case.limits.append(dot_peak(threads))
        else:
            case.limits.append(array.nbytes / read_pass(array, threads))
    return [case.result(threads) for case in cases], engine.memory


def _name(case: _Case, threads: int) -> str:
    return f"{case.kind} {case.prompt_tokens or case.decode_tokens}, {threads} threads"


def _cases(engine: Engine, sweep: Sweep, work: Work) -> Iterator[_Case]:
    before = sweep.read_before(engine.plan)
    for tokens in sweep.prefill:

        def prefill(tokens: int = tokens) -> float:
            return _time_prefill(engine, tokens)

        yield _Case(
            PREFILL, 0, tokens, 0, prefill, work.bytes_read(tokens), work.prompt_products(tokens)
        )
    for count in sweep.sequences:
        for tokens in sweep.decode:

            def decode(count: int = count, tokens: int = tokens) -> float:
                return _time_decode(engine, count, tokens, before)

            total, products = count * tokens, tokens * work.products(count, count)
            yield _Case(DECODE, count, 0, total, decode, tokens * work.bytes_read(count), products)
    longest = 0 if engine.plan.inputs else max(sweep.prefill, default=0)  # an encoder runs apart
    for count in sweep.sequences if longest > 1 else ():
        steps = -(-longest // (engine.settings.step_tokens - count))

        def mixed(count: int = count) -> float:
            return _time_mixed(engine, count, longest)

        products = work.products(longest, 1) + work.products(count * steps, count * steps)
        yield _Case(
            MIXED,
            count,
            longest,
            count * steps,
            mixed,
            steps * work.bytes_read(longest // steps + count),
            products,
        )


def _prompt(engine: Engine, tokens: int, seed: int) -> list[int]:
    """Tokens that a text could have: which ones does not matter to the time."""
    drawn = np.random.default_rng(seed).integers(0, engine.plan.vocabulary, tokens)
    return [int(token) for token in drawn]


def _open(engine: Engine, prompt: Sequence[int]) -> tuple[EngineSequence, Sequence[int]]:
    """A sequence, and what it is to be stepped with first: the prompt, or an answer's begin."""
    if engine.plan.inputs:
        return engine.begin(START, source=prompt), START
    return engine.begin(prompt, reuse=False), prompt


def _time_prefill(engine: Engine, tokens: int) -> float:
    """Seconds until the logits after a prompt."""
    sequence, first = _open(engine, _prompt(engine, tokens, 0))
    try:
        begin = time.perf_counter()
        _read(engine, sequence, first, engine.settings.step_tokens)
        return time.perf_counter() - begin
    finally:
        engine.end(sequence)


def _read(engine: Engine, sequence: EngineSequence, prompt: Sequence[int], step: int) -> int:
    """Read a prompt; gives the most likely next token."""
    for first in range(0, len(prompt), step):
        last = first + step >= len(prompt)
        rows = Rows.LAST if last else Rows.NONE
        logits = engine.run([StepPart(sequence, prompt[first : first + step], rows)])
        token = int(logits[0].argmax()) if last else 0
    return token


def _begin(engine: Engine, count: int, before: int) -> tuple[list[EngineSequence], list[int]]:
    """Sequences that have read a prompt, and their next tokens."""
    sequences, following = [], []
    for k in range(count):
        sequence, first = _open(engine, _prompt(engine, before, k + 1))
        sequences.append(sequence)
        following.append(_read(engine, sequence, first, PROMPT_TOKENS))
    return sequences, following


def _time_decode(engine: Engine, count: int, tokens: int, before: int) -> float:
    """Seconds of some greedy steps of sequences together."""
    sequences, following = _begin(engine, count, before)
    try:
        begin = time.perf_counter()
        for _ in range(tokens):
            parts = [StepPart(*pair) for pair in zip(sequences, _singles(following), strict=True)]
            following = engine.run(parts).argmax(axis=1).tolist()
        return time.perf_counter() - begin
    finally:
        for sequence in sequences:
            engine.end(sequence)


def _time_mixed(engine: Engine, count: int, tokens: int) -> float:
    """Seconds in which a prompt is read while sequences go on decoding."""
    sequences, following = _begin(engine, count, PROMPT_TOKENS)
    prompt = _prompt(engine, tokens, 0)
    reading = engine.begin(prompt, reuse=False)
    step = engine.settings.step_tokens - count
    try:
        begin = time.perf_counter()
        for first in range(0, tokens, step):
            rows = Rows.LAST if first + step >= tokens else Rows.NONE
            parts = [StepPart(*pair) for pair in zip(sequences, _singles(following), strict=True)]
            parts.append(StepPart(reading, prompt[first : first + step], rows))
            following = engine.run(parts)[:count].argmax(axis=1).tolist()
        return time.perf_counter() - begin
    finally:
        for sequence in (*sequences, reading):
            engine.end(sequence)


def _singles(tokens: Sequence[int]) -> list[tuple[int]]:
    return [(token,) for token in tokens]
