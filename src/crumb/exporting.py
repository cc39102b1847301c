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
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.compressed_tensors.writer import write_compressed_tensors
from crumb.checkpoints.crumb.reader import (
    MANIFEST,
    METHOD,
    ORDER,
    TILES,
    matrix_metadata,
    quantization_config,
)
from crumb.checkpoints.directory_writer import (
    AGAIN,
    Part,
    new_directory,
    refuse_existing,
    write_model,
)
from crumb.checkpoints.export_report import TensorReport
from crumb.checkpoints.float_parts import Told, decoded_part, plain_part, source_name
from crumb.checkpoints.gguf.reader import SUFFIX
from crumb.checkpoints.gguf.tensor_types import choose_type, encode_rows, start_change
from crumb.checkpoints.gguf.writer import VECTORS, write_gguf
from crumb.checkpoints.gptq.writer import write_gptq
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import ArrayToWrite
from crumb.checkpoints.tensor_map import Quantized
from crumb.errors import UsageError
from crumb.files.atomic_file import disk_errors, write_json
from crumb.files.model_files import optional_json
from crumb.formats.packed_tensor import stored_shape


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


def write_crumb(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    """A crumb directory; every quantized matrix keeps its codes and scales."""
    parts: list[Part] = []
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        if not isinstance(entry, Quantized):
            parts.append(plain_part(spec.name, entry, told))
            continue
        parts += _packed(spec.name, entry, told)
    configuration = dict(checkpoint.configuration)
    configuration["quantization_config"] = quantization_config()
    manifest = optional_json(checkpoint.files, MANIFEST) or {
        "manifest_version": 1,
        "exported_from": {"name": checkpoint.path.name, "sha256": checkpoint.sha256()},
    }
    with new_directory(request.out) as target:
        write_model(target, parts, configuration, checkpoint.files, METHOD)
        write_json(target / MANIFEST, manifest)


def _packed(name: str, entry: Quantized, told: Told) -> list[Part]:
    """A matrix in tiles, and the order of its columns where they have one."""
    shape = stored_shape(entry.format, *entry.shape)

    def read() -> NDArray[Any]:
        told(TensorReport(name, source_name(entry), entry.format.name, exact=True))
        return entry.read(name).tiles

    metadata = {name: matrix_metadata(entry.format, entry.shape)}
    parts = [Part(f"{name}.{TILES}", ArrayToWrite(np.dtype(np.uint8), shape, read), metadata)]
    if entry.order is not None:
        order = entry.order.astype(np.int32)
        stored = ArrayToWrite(order.dtype, order.shape, lambda: order)
        parts.append(Part(f"{name}.{ORDER}", stored))
    return parts


def write_floats(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    """A float directory that any library reads; quantized matrices are decoded."""
    dtype = FLOAT_TYPES[request.float_type or "float16"]
    parts = []
    decoded = False
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        if isinstance(entry, Quantized):
            decoded = True
            parts.append(decoded_part(spec.name, entry, dtype, "floats asked for", told))
        else:
            parts.append(plain_part(spec.name, entry, told))
    left_out = ("quantization_config", *(("torch_dtype",) if decoded else ()))
    configuration = {
        key: value for key, value in checkpoint.configuration.items() if key not in left_out
    }
    if decoded:  # else loaders would round floats that were not changed
        configuration["dtype"] = dtype.name
    with new_directory(request.out) as target:
        write_model(target, parts, configuration, checkpoint.files, "pt")


def write_gguf_file(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    """A GGUF file; a matrix is written in the type nearest to its format."""
    refuse_existing(request.out)
    entries = {}
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        if spec.matrix:
            entries[spec.name] = entry
        else:
            told(TensorReport(spec.name, source_name(entry), VECTORS, exact=True))
    types = {
        name: choose_type(entry, request.gguf_type, request.strict)
        for name, entry in entries.items()
    }
    changes = {name: start_change(types[name], request.gguf_type) for name in entries}

    def encode(name: str, type_name: str, rows: slice) -> NDArray[np.uint8]:
        entry = entries[name]
        raw = encode_rows(entry, type_name, rows, changes[name])
        if rows.stop == entry.shape[0]:
            told(changes[name].report(name, entry, type_name))
        return raw

    with disk_errors(request.out, do=AGAIN):
        write_gguf(checkpoint, request.out, types, encode, model_name(request.model))


def _write_gptq(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    write_gptq(checkpoint, request.out, request.to.value, told)


def _write_compressed_tensors(checkpoint: Checkpoint, request: ExportRequest, told: Told) -> None:
    write_compressed_tensors(checkpoint, request.out, told)


def model_name(model: str) -> str:
    """What a file calls its model."""
    name = Path(model.partition("@")[0]).name
    return (name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name) or "model"


WRITERS: dict[Container, Callable[[Checkpoint, ExportRequest, Told], None]] = {
    Container.CRUMB: write_crumb,
    Container.GGUF: write_gguf_file,
    Container.SAFETENSORS: write_floats,
    Container.GPTQ: _write_gptq,
    Container.GPTQ_V2: _write_gptq,
    Container.COMPRESSED_TENSORS: _write_compressed_tensors,
}
"""Container -> who writes it."""
