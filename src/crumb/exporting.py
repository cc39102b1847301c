"""Write a model in another container, exactly where its formats allow, and say what was changed.

In: an ExportRequest. Out: a new directory or file and a report of every tensor. One tensor is in
memory at a time; the output is put together beside its place and renamed.
Refuses outputs that exist and, when strict, whatever would have to be changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

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


class Container(StrEnum):
    """What can be written."""

    CRUMB = "crumb"
    GGUF = "gguf"
    GPTQ = "gptq"
    GPTQ_V2 = "gptq_v2"
    COMPRESSED_TENSORS = "compressed-tensors"
    SAFETENSORS = "safetensors"

    @classmethod
    def _missing_(cls, value: object) -> Container:
        raise UsageError(
            "no such container", expected=f"one of {', '.join(cls)}", found=repr(value)[:40]
        )


FLOAT_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class ExportRequest:
    """What to write, and where."""

    model: str
    out: Path
    to: Container
    gguf_type: str | None = None  # of every matrix; None: the nearest to what it is
    float_type: str | None = None  # what decoded matrices are stored as; None: float16
    strict: bool = False  # a tensor that has to be changed is an error

    def __post_init__(self) -> None:
        if self.to is not Container.SAFETENSORS and self.float_type is not None:
            raise UsageError(
                "only safetensors has float types to choose", found=f"--float-type with {self.to}"
            )
        if self.float_type not in (None, *FLOAT_TYPES):
            raise UsageError(
                "no such float type",
                expected=f"one of {', '.join(FLOAT_TYPES)}",
                found=repr(self.float_type)[:40],
            )
        if self.gguf_type is not None and self.to is not Container.GGUF:
            raise UsageError("only gguf has types to choose", found=f"--type with {self.to}")
        if self.to is Container.GGUF and self.out.suffix.lower() != SUFFIX:
            raise UsageError(
                "the output would not be known as a GGUF file",
                where=self.out,
                expected=f"a name that ends in {SUFFIX}",
                do="Choose another --out",
            )


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


@dataclass(frozen=True)
class ExportCost:
    """What an export takes, about."""

    memory_bytes: int
    seconds: float


def cost_of(checkpoint: Checkpoint) -> ExportCost:
    """Memory follows the largest matrix, time all of them."""
    largest = max(prod(spec.shape) for spec in checkpoint.plan.tensors())
    seconds = SECONDS_OF_WEIGHT * checkpoint.plan.parameters()
    return ExportCost(PROCESS_BYTES + BYTES_OF_WEIGHT * largest, seconds)


def export(
    request: ExportRequest,
    progress: Callable[[int, int, str], None] = lambda *_: None,
    begin: Callable[[ExportCost], None] = lambda cost: None,
) -> ExportResult:
    """Write a model in another container.

    begin is told what it takes before anything is written; progress(done, total, name) counts
    tensors.
    Raises: ModelNotFound, CheckpointError, UsageError, OutputConflict, DoesNotFit, SolveError.
    """
    checkpoint = open_checkpoint(locate(request.model))
    begin(cost_of(checkpoint))
    reports: list[TensorReport] = []
    total = len(checkpoint.plan.tensors())

    def told(report: TensorReport) -> None:
        if request.strict and not report.exact:
            raise UsageError(
                "a tensor would be changed and --strict forbids it",
                where=report.name,
                expected=f"{report.source} as it is",
                found=f"{report.target}: {report.note}",
                do="Quantize the float model with --for and this container, or drop --strict",
            )
        reports.append(report)
        progress(len(reports), total, report.name)

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
    choice = TypeChoice(request.gguf_type, request.strict)
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
