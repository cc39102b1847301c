"""Write a model in another container, exactly where its formats allow, and say what was changed.

In: an ExportRequest. Out: a new directory or file and a report of every tensor. One tensor is in
memory at a time; the output is put together beside its place and renamed.
Refuses outputs that exist and, when strict, whatever would have to be changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.compressed_tensors.writer import write_compressed_tensors
from crumb.checkpoints.crumb.writer import write_crumb
from crumb.checkpoints.export_report import TensorReport, Told
from crumb.checkpoints.gguf.reader import SUFFIX
from crumb.checkpoints.gguf.writer import TypeChoice, export_gguf
from crumb.checkpoints.gptq.writer import write_gptq
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.huggingface.writer import write_floats
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.progress import Cost, CostListener, ProgressClock, ProgressListener, untold
from crumb.requests.export_request import FLOAT_TYPES, Container, ExportRequest


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    out: Path
    file_bytes: int
    bits_per_weight: float
    tensors: tuple[TensorReport, ...]

    @property
    def changed(self) -> tuple[TensorReport, ...]:
        return tuple(report for report in self.tensors if not report.exact)


PROCESS_BYTES = 100 << 20
BYTES_OF_WEIGHT = 12
"""Of the largest matrix: its weights before and after, codes, what is written."""

SECONDS_OF_WEIGHT = 5e-8
"""What GGUF takes on one processor; directories take a third of it or less."""


def cost_of(checkpoint: Checkpoint) -> Cost:
    """Memory follows the largest matrix, time all of them."""
    largest = max(prod(spec.shape) for spec in checkpoint.plan.tensors())
    seconds = SECONDS_OF_WEIGHT * checkpoint.plan.parameters()
    return Cost(PROCESS_BYTES + BYTES_OF_WEIGHT * largest, seconds)


def export(
    request: ExportRequest,
    progress: ProgressListener = untold,
    cost: CostListener = untold,
) -> ExportResult:
    """Write a model in another container.

    `cost` is told before anything is written, `progress` of each tensor.
    Raises: ModelNotFound, CheckpointError, UsageError, OutputConflict, DoesNotFit, SolveError.
    """
    checkpoint = open_checkpoint(locate(request.model))
    cost(cost_of(checkpoint))
    clock = ProgressClock(progress)
    reports: list[TensorReport] = []
    total = len(checkpoint.plan.tensors())

    def told(report: TensorReport) -> None:
        if request.strict and not report.exact:
            raise UsageError(
                "a tensor would be changed and --strict forbids it",
                where=report.name,
                expected=f"{report.source} as it is",
                found=f"{report.target}: {report.note}",
                do="Quantize the float model for this container with --target, or drop --strict",
            )
        reports.append(report)
        clock(len(reports) / total, report.name)

    WRITERS[request.to](checkpoint, request, told)
    written = open_checkpoint(request.out)
    size = written.weight_bytes()
    bits = 8 * size / written.plan.parameters()
    return ExportResult(request.out, size, bits, tuple(reports))


def _write_crumb(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    write_crumb(checkpoint, request.out, told)


def _write_floats(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    write_floats(checkpoint, request.out, FLOAT_TYPES[request.float_type or "float16"], told)


def _write_gguf(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    choice = TypeChoice(request.type, request.strict)
    export_gguf(checkpoint, request.out, choice, model_name(request.model), told)


def _write_gptq(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    write_gptq(checkpoint, request.out, request.to.value, told)


def _write_compressed_tensors(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    write_compressed_tensors(checkpoint, request.out, told)


def model_name(model: str) -> str:
    """What a file calls its model."""
    name = Path(model.partition("@")[0]).name
    return (name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name) or "model"


WRITERS: dict[Container, Callable[[Checkpoint, ExportRequest, Told], None]] = {
    Container.CRUMB: _write_crumb,
    Container.GGUF: _write_gguf,
    Container.SAFETENSORS: _write_floats,
    Container.GPTQ: _write_gptq,
    Container.GPTQ_V2: _write_gptq,
    Container.COMPRESSED_TENSORS: _write_compressed_tensors,
}
"""Container -> who writes it."""
