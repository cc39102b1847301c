"""LayerProblem in, LayerSolution out: the records of every solver, and the solvers by name.

A problem is one matrix, its statistics and the settings; a solution is codes, parameters and a
report. Refuses weights that are not finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from crumb.errors import SolveError
from crumb.formats.catalog import Format
from crumb.formats.grid import GroupParameters


class Method(StrEnum):
    """How codes are chosen."""

    ROUND = "round"
    GPTQ = "gptq"


class Scales(StrEnum):
    """How a group's scale is chosen."""

    MINMAX = "minmax"  # from the extremes, as the GPTQ paper does
    SEARCH = "search"  # least squares weighted by the diagonal of H


@dataclass(frozen=True)
class SolveSettings:
    """Everything about a solver that the user may choose."""

    method: Method = Method.GPTQ
    scales: Scales = Scales.SEARCH
    damping: float | None = None  # share of the mean diagonal; None: by tokens per column
    act_order: bool = True  # columns by descending diagonal of H
    static_groups: bool = True  # scales from the original weights, before the sweep
    block_columns: int = 128
    strict: bool = False  # a fallback is an error


AS_PUBLISHED = SolveSettings(
    scales=Scales.MINMAX, damping=0.01, act_order=False, static_groups=False
)
"""GPTQ as its paper and the seeds of this project ran it."""


@dataclass(frozen=True)
class LayerProblem:
    """One matrix to quantize."""

    name: str
    weights: NDArray[np.float32]  # (out_features, in_features); a solver does not change it
    hessian: NDArray[np.float64] | None  # (in_features, in_features); None only for Method.ROUND
    tokens: int
    format: Format
    settings: SolveSettings

    def check(self) -> None:
        """Refuse what no solver can work with. Raises: SolveError, UsageError."""
        self.format.check_width(self.weights.shape[1], self.name)
        check_finite(self.weights, self.name)


def check_finite(weights: NDArray[np.float32], name: str) -> None:
    """Refuse NaN and infinite weights, naming the first. Raises: SolveError."""
    # A sum is finite only if every term is; overflow of the f64 sum needs larger terms than f32.
    if np.isfinite(np.sum(weights, dtype=np.float64)):
        return
    row, column = np.argwhere(~np.isfinite(weights))[0]
    raise SolveError(
        "the checkpoint's weights are not finite",
        where=f"{name}[{row}, {column}]",
        expected="finite numbers",
        found=weights[row, column],
        do="The checkpoint is damaged or overflowed when it was converted",
    )


@dataclass(frozen=True)
class SolveReport:
    """What the manifest records of one solved matrix."""

    error: float | None  # tr(D H D^T), D = W - decoded: mean squared output error; None without H
    energy: float | None  # tr(W H W^T): mean squared output
    zero_share: float  # share of weights that decode to 0
    damping: float | None = None
    fallback: str | None = None  # why it is not what was asked for

    @property
    def relative_error(self) -> float | None:
        if self.error is None or self.energy is None:
            return None
        return self.error / max(self.energy, float(np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class LayerSolution:
    """What a solver chose."""

    codes: NDArray[np.uint8]  # (out_features, in_features)
    parameters: GroupParameters
    report: SolveReport
