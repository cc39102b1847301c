"""What of a model fits into some memory, told before any weight is downloaded.

In: a FitRequest. Out: a FitReport. A model on the hub is read by its outline: configuration,
tokenizer and headers. Memory is the engine's own plan, as in a dry run, with the process around it.
Refuses models that are not there; what does not fit is a row that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.manifest import read_manifest
from crumb.checkpoints.huggingface.hub import local_path, locate, needed_hub_name
from crumb.checkpoints.huggingface.outline import Outline, outline
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import Quantized
from crumb.errors import CrumbError
from crumb.fitting.advice import advice_of
from crumb.fitting.candidates import Candidate, candidates
from crumb.fitting.expected_quality import expected_bits_per_byte, expected_kl
from crumb.fitting.report import FitReport, FitRow, ModelFit, Quality
from crumb.fitting.speed_probe import Speed, probe_speed
from crumb.machine.control_groups import memory_headroom_bytes
from crumb.machine.memory import available_bytes, memory_bytes, resident_bytes
from crumb.progress import ProgressClock, ProgressListener, untold
from crumb.requests.fit_request import FitRequest
from crumb.run.load import engine_settings
from crumb.run.memory_plan import (
    CacheKind,
    EngineSettings,
    chosen_kind,
    plan_memory,
    process_bytes,
)
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.tokenizer.tokenizer import load_tokenizer

FLOAT_BITS = 16.0
"""Bits per weight from which on a file holds the model itself."""

SAMPLE = "excerpt-evaluation"
"""The text whose tokens are counted."""

USUAL_TOKEN_BYTES = 4.0
"""Bytes of a token where a model has no tokenizer that can be read."""


@dataclass(frozen=True)
class Opened:
    """A model whose headers were read."""

    model: str
    checkpoint: Checkpoint
    candidates: list[Candidate]


def fit(request: FitRequest, progress: ProgressListener = untold) -> FitReport:
    """What fits. A single model that cannot be opened is an error, one of several is told.

    Raises: ModelNotFound, CheckpointError, UnknownFamily, UsageError.
    """
    resident = resident_bytes()
    cache = chosen_kind(CacheKind, request.cache, "cache")
    limit, said_by = _memory(request)
    clock = ProgressClock(progress)
    fits, failures = [], []
    for index, model in enumerate(request.models):
        clock(index / len(request.models), model)
        try:
            with open_outline(model) as outlined:
                fits.append(_fit_model(outlined, request, cache, limit, resident))
        except CrumbError as error:
            if len(request.models) == 1:
                raise
            failures.append(f"{model}: {error}")
    fits.sort(key=_rank)
    return FitReport(limit, said_by, available_bytes(), tuple(fits), tuple(failures))


def _memory(request: FitRequest) -> tuple[int, str]:
    """The memory that is asked about, and who says so."""
    if request.memory_bytes is not None:
        return request.memory_bytes, "the request"
    free, headroom = available_bytes(), memory_headroom_bytes()
    if headroom is not None and headroom <= free < memory_bytes():
        return free, "a control group"
    return free, "the machine"


def _rank(fit: ModelFit) -> tuple[bool, float]:
    """The lowest bits per byte first; what does not fit last."""
    return fit.best is None, fit.bits_per_byte or 0.0


@contextmanager
def open_outline(model: str) -> Iterator[Opened]:
    """A model, its weights perhaps holes. Raises: ModelNotFound, CheckpointError."""
    local = local_path(model)
    if local is not None:
        yield _opened(model, Outline(local))
        return
    with TemporaryDirectory(prefix="crumb-fit-") as folder:
        with _named(model, folder):
            outlined = outline(needed_hub_name(model), model, Path(folder))
            headers = _opened(model, outlined or Outline(locate(model)))  # in the cache
        yield headers


@contextmanager
def _named(model: str, folder: str) -> Iterator[None]:
    """Errors about the outline are about the model."""
    try:
        yield
    except CrumbError as error:
        where = model if error.where is None else str(error.where).replace(folder, model)
        raise error.at(where) from error


def _opened(model: str, outlined: Outline) -> Opened:
    checkpoint = open_checkpoint(outlined.path)
    rows = candidates(checkpoint)
    if outlined.others:
        lying = rows[0]
        header = lying.file_bytes - checkpoint.tensors.size_bytes()
        rows = [replace(lying, name=outlined.path.name)]
        for file, size in outlined.others.items():
            weights, bits = size - header, 8 * size / checkpoint.plan.parameters()
            other = replace(
                lying, name=file, file_bytes=size, weights_bytes=weights, block_bits=bits
            )
            rows.append(other)
    return Opened(model, checkpoint, sorted(rows, key=lambda row: -row.file_bytes))


def _fit_model(
    opened: Opened, request: FitRequest, cache: CacheKind, limit: int, resident: int
) -> ModelFit:
    """All rows of a model, the best of them, and what else could be done."""
    checkpoint, plan = opened.checkpoint, opened.checkpoint.plan
    settings = replace(
        engine_settings(plan, request.context_tokens, request.parallel, cache),
        threads=request.threads,
    )
    process = process_bytes(plan.vocabulary, resident, lambda: load_tokenizer(checkpoint.files))
    speeds = _speeds(opened, settings) if request.speed else {}
    rows = tuple(
        _row(opened, each, settings, process, limit, speeds.get(each.name))
        for each in opened.candidates
    )
    best = _best(rows)
    bits_per_byte = _bits_per_byte(checkpoint, None if best is None else rows[best])
    context = settings.context(plan)
    return ModelFit(
        opened.model,
        plan.family,
        plan.parameters(),
        context,
        request.parallel,
        cache.value,
        rows,
        best,
        *bits_per_byte,
        advice_of(opened.model, rows, best, limit, context, request.parallel, cache.value),
    )


def _speeds(opened: Opened, settings: EngineSettings) -> dict[str, Speed | None]:
    """By candidate: those with codes of one width and kind are as fast as each other.

    The prompt fills half of the context.
    """
    plan = opened.checkpoint.plan
    prompt_tokens = max(1, settings.context(plan) // 2)
    tensors = opened.checkpoint.tensors.entries
    dtypes = {
        name: entry.dtype for name, entry in tensors.items() if not isinstance(entry, Quantized)
    }
    probed: dict[tuple[str, ...], Speed | None] = {}
    speeds = {}
    for row in opened.candidates:
        kinds = tuple(sorted({format.row.name for format in row.formats.values()}))
        if kinds not in probed:
            probed[kinds] = probe_speed(plan, row.formats, dtypes, settings, prompt_tokens)
        speeds[row.name] = probed[kinds]
    return speeds


def _row(
    opened: Opened,
    candidate: Candidate,
    settings: EngineSettings,
    process: int,
    limit: int,
    speed: Speed | None,
) -> FitRow:
    plan = opened.checkpoint.plan
    memory = replace(
        plan_memory(plan, candidate.formats, candidate.weights_bytes, settings, candidate.orders),
        process_bytes=process,
    )
    return FitRow(
        candidate.name,
        candidate.lies_here,
        candidate.file_bytes,
        8 * candidate.file_bytes / plan.parameters(),
        memory,
        memory.total_bytes,
        memory.total_bytes <= limit,
        None if speed is None else speed.prompt_tokens_per_second,
        None if speed is None else speed.decode_tokens_per_second,
        _quality(opened.checkpoint, candidate),
    )


def _quality(checkpoint: Checkpoint, candidate: Candidate) -> Quality | None:
    """As measured where the file's manifest says so, else as expected of such a model."""
    parameters = checkpoint.plan.parameters()
    measured = read_manifest(checkpoint.path)[0].measured if candidate.lies_here else None
    if measured is not None:
        return Quality(measured.kl, True, measured.text)
    if candidate.block_bits >= FLOAT_BITS:
        return None
    expectation = expected_kl(parameters, candidate.block_bits, candidate.codes)
    return Quality(expectation.value, False, expectation.of)


def _best(rows: tuple[FitRow, ...]) -> int | None:
    """The row that fits and costs least quality; of equals, the smaller."""
    fitting = [index for index, row in enumerate(rows) if row.fits]
    return min(
        fitting,
        key=lambda index: (quality_cost(rows[index]), rows[index].memory_bytes),
        default=None,
    )


def quality_cost(row: FitRow) -> float:
    """KL of a row; 0 of floats."""
    return 0.0 if row.quality is None else row.quality.kl


def _bits_per_byte(checkpoint: Checkpoint, row: FitRow | None) -> tuple[float | None, bool, str]:
    """Of a row: as its manifest has it, or of the float model what its size lets expect.

    Then what the KL adds for each token. Out: bits, whether they were measured, on or of what.
    """
    measured = read_manifest(checkpoint.path)[0].measured if row and row.lies_here else None
    if measured is not None and measured.bits_per_byte is not None:
        return measured.bits_per_byte, True, measured.text
    expectation = expected_bits_per_byte(checkpoint.plan.parameters())
    if row is None:
        return None, False, expectation.of
    text = read_text(SAMPLE, Use.EVALUATION).text
    try:
        tokens = len(load_tokenizer(checkpoint.files).encode(text))
    except CrumbError:
        tokens = round(len(text.encode()) / USUAL_TOKEN_BYTES)
    added = quality_cost(row) / log(2) * tokens / len(text.encode())
    return expectation.value + added, False, expectation.of
