"""The card of a model: what it is, where its bits went, what they cost, what memory it takes.

In: an opened checkpoint, and what its manifest says. Out: a ModelCard, plain values for JSON.
Nothing is measured here but memory: a divergence that the manifest does not have is none.
"""

from __future__ import annotations

from math import prod

import msgspec

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.manifest import MeasuredRecord, read_manifest
from crumb.checkpoints.tensor_map import Quantized
from crumb.machine.memory import peak_memory_bytes, resident_bytes
from crumb.operations.operation import TensorSpec


class StageBits(msgspec.Struct, frozen=True):
    """What one stage's matrices spend: the embedding, a block, or the head."""

    name: str
    bits_per_weight: float
    formats: tuple[str, ...]  # of its matrices, each once


class ModelCard(msgspec.Struct, frozen=True):
    """What the page shows of a model."""

    family: str
    parameters: int
    file_bytes: int
    bits_per_weight: float  # of the whole file
    context_tokens: int  # the model's positions
    stages: list[StageBits]
    method: str | None = None  # how codes were chosen, where Crumb chose them
    calibration: str | None = None
    measured: MeasuredRecord | None = None  # what the bits cost


class ProcessMemory(msgspec.Struct, frozen=True):
    """What this process has resident: all its models, and what it is itself."""

    now_bytes: int
    peak_bytes: int


def process_memory() -> ProcessMemory:
    """Measured now."""
    return ProcessMemory(resident_bytes(), peak_memory_bytes())


def model_card(checkpoint: Checkpoint) -> ModelCard:
    """The card of an opened model. Raises: CheckpointError for a broken manifest."""
    manifest, _ = read_manifest(checkpoint.path)
    plan, size, job = checkpoint.plan, checkpoint.weight_bytes(), manifest.job
    parameters = plan.parameters()
    calibration = job.calibration if job else None
    return ModelCard(
        family=plan.family,
        parameters=parameters,
        file_bytes=size,
        bits_per_weight=8 * size / parameters,
        context_tokens=plan.max_positions,
        stages=[
            stage_bits(checkpoint, stage.name, matrices)
            for stage in plan.stages
            if (matrices := [spec for spec in stage.tensors() if spec.matrix])
        ],
        method=job.solve.method if job else None,
        calibration=(
            f"{calibration.spec}, {calibration.sequences} × {calibration.length_tokens} tokens"
            if calibration
            else None
        ),
        measured=manifest.measured,
    )


def stage_bits(checkpoint: Checkpoint, name: str, matrices: list[TensorSpec]) -> StageBits:
    """Bytes of a stage's matrices as they lie in the file, over their weights."""
    entries = [checkpoint.tensors.entry(spec.name) for spec in matrices]
    weights = sum(prod(spec.shape) for spec in matrices)
    names = (
        entry.format.name if isinstance(entry, Quantized) else entry.dtype.name for entry in entries
    )
    return StageBits(
        name=name,
        bits_per_weight=8 * sum(entry.size_bytes for entry in entries) / weights,
        formats=tuple(dict.fromkeys(names)),
    )
