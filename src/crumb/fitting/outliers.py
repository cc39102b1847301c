"""Outliers of a model's matrices: what makes them hard to quantize, told a tensor at a time.

In: an opened checkpoint of any container. Out: a TensorOutliers for each matrix, the worst first.
Holds some rows of one matrix. Where the manifest has the error that a quantization left, weighted
by what the layer reads, its share in the worst columns is told; else that of plain rounding.
Refuses weights that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.manifest import TensorRecord, read_manifest
from crumb.formats.catalog import ZeroKind, make_format
from crumb.formats.grid import decode_columns, encode_columns, group_of_column
from crumb.operations.operation import TensorSpec
from crumb.progress import ProgressClock, ProgressListener, untold
from crumb.solve.problem import check_finite, worst_columns_share
from crumb.solve.scales import minmax

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]

ROUNDED = make_format(3, 128, ZeroKind.FIXED)
"""What plain rounding is told in: scales from the extremes of each group."""

WEIGHTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class TensorOutliers:
    """How far the largest of a matrix lie from the rest; None where all of it is one number."""

    name: str
    shape: tuple[int, int]  # (out_features, in_features)
    kurtosis: float | None  # fourth moment over squared variance: 3 of a normal distribution
    largest_weight: float | None  # over the standard deviation
    largest_column: float | None  # norm of an input's column over the median of all
    worst_columns_share: float | None  # of the squared error, in the worst 1 % of columns
    weighted: bool  # that error, by the mean squares of the layer's inputs


def outliers_of(
    checkpoint: Checkpoint, progress: ProgressListener = untold
) -> list[TensorOutliers]:
    """Every matrix of a model, highest kurtosis first. Raises: CheckpointError, SolveError."""
    records = read_manifest(checkpoint.path)[0].tensors
    specs = {spec.name: spec for spec in checkpoint.plan.tensors() if spec.matrix}
    clock, done = ProgressClock(progress), 0
    total = sum(spec.shape[0] * spec.shape[1] for spec in specs.values())
    rows = []
    for spec in specs.values():
        clock(done / total, spec.name)
        rows.append(_outliers(checkpoint, spec, records.get(spec.name, TensorRecord())))
        done += spec.shape[0] * spec.shape[1]
    return sorted(rows, key=lambda row: -(row.kurtosis or 0.0))


def _outliers(checkpoint: Checkpoint, spec: TensorSpec, record: TensorRecord) -> TensorOutliers:
    shape = (spec.shape[0], spec.shape[1])
    sums = _Sums(shape[1])
    for begin, weights in _slices(checkpoint, spec):
        check_finite(weights, spec.name, begin)
        sums.add(weights)
    share = record.worst_columns_share
    return TensorOutliers(
        spec.name,
        shape,
        *sums.of_weights(),
        sums.largest_column(),
        worst_columns_share(sums.errors) if share is None else share,
        weighted=share is not None,
    )


def _slices(checkpoint: Checkpoint, spec: TensorSpec) -> Iterator[tuple[int, Floats]]:
    return checkpoint.tensors.slices(spec.name, max(1, WEIGHTS_AT_ONCE // spec.shape[1]))


class _Sums:
    """What is added up over the rows of a matrix."""

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.about = 0.0  # moments are taken about the first rows' mean, so that none cancels
        self.powers: Sums = np.zeros(4)  # sums of (w - about) to 1 .. 4
        self.largest = 0.0
        self.squares: Sums = np.zeros(columns)
        self.errors: Sums = np.zeros(columns)  # of plain rounding, squared

    def add(self, weights: Floats) -> None:
        if not self.count:
            self.about = float(weights.mean(dtype=np.float64))
        self.count += weights.size
        apart = weights.astype(np.float64).reshape(-1) - self.about
        squared = np.square(apart)
        self.powers += apart.sum(), squared.sum(), squared @ apart, squared @ squared
        self.largest = max(self.largest, float(np.abs(weights).max()))
        self.squares += np.einsum("ij,ij->j", weights, weights, dtype=np.float64)
        error = weights - _rounded(weights)
        self.errors += np.einsum("ij,ij->j", error, error, dtype=np.float64)

    def of_weights(self) -> tuple[float | None, float | None]:
        """Kurtosis, and the largest weight over the standard deviation."""
        first, second, third, fourth = self.powers / self.count
        variance = second - first**2
        if variance <= 0:
            return None, None
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        return float(central / variance**2), float(self.largest / np.sqrt(variance))

    def largest_column(self) -> float | None:
        """The largest norm of a column over the median one."""
        norms = np.sqrt(self.squares)
        median = float(np.median(norms))
        return float(norms.max()) / median if median else None


def _rounded(weights: Floats) -> Floats:
    """The nearest weights of a format, whose scales are f32 here: none is too large."""
    group = group_of_column(ROUNDED, weights.shape[1])
    scale, offset = (each[:, group] for each in minmax(weights, ROUNDED))
    codes = encode_columns(weights, scale, offset, ROUNDED.row.largest_code, ROUNDED.zero)
    return decode_columns(codes, scale, offset, ROUNDED.zero)
