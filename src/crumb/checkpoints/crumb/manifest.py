"""manifest.json of a crumb directory, read back: where a model came from, what was done to it.

In: a directory. Out: a Manifest; an empty one where there is no file.
Refuses a file whose entries are of another type than the pipeline writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from crumb.checkpoints.crumb.reader import MANIFEST
from crumb.errors import CheckpointError
from crumb.files.model_files import read_json


class SolveRecord(msgspec.Struct, frozen=True):
    """How codes were chosen."""

    method: str
    scales: str


class CalibrationRecord(msgspec.Struct, frozen=True):
    """Which text the statistics came from."""

    spec: str
    sequences: int
    length_tokens: int
    seed: int


class Job(msgspec.Struct, frozen=True):
    """What decided the bytes."""

    solve: SolveRecord
    calibration: CalibrationRecord | None = None


class RoutedRecord(msgspec.Struct, frozen=True):
    """Which tokens an expert's statistics came from."""

    tokens: int
    borrowed: float  # weight of the block's other tokens, 0 to 1


class TensorRecord(msgspec.Struct, frozen=True):
    """What was done to one tensor."""

    relative_error: float | None = None
    zero_share: float | None = None
    worst_columns_share: float | None = None  # of the weighted error, in the worst 1 % of columns
    damping: float | None = None
    fallback: str | None = None
    routed: RoutedRecord | None = None


class MeasuredRecord(msgspec.Struct, frozen=True):
    """What the quantization cost, measured at its end on the model's own reference pack."""

    text: str
    kl: float
    kl_standard_error: float | None = None
    perplexity_ratio: float | None = None
    top1_agreement: float | None = None
    bits_per_byte: float | None = None


class Manifest(msgspec.Struct, frozen=True):
    """What the file says, as far as it is shown."""

    job: Job | None = None
    measured: MeasuredRecord | None = None
    fallbacks: list[str] = []
    tensors: dict[str, TensorRecord] = {}


def read_manifest(directory: Path) -> tuple[Manifest, dict[str, Any]]:
    """The manifest, checked, and all of its JSON. Raises: CheckpointError."""
    path = directory / MANIFEST
    if not path.exists():
        return Manifest(), {}
    raw = read_json(path)
    try:
        return msgspec.convert(raw, Manifest), raw
    except msgspec.ValidationError as error:
        raise CheckpointError(f"no manifest of a quantized model: {error}", where=path) from error
