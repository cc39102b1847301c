"""LayerProblem in, LayerSolution out: the records of every solver, and the solvers by name.

A problem is one matrix, its statistics and the settings; a solution is codes, parameters and a
report. Refuses weights that are not finite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crumb.errors import SolveError, UsageError
from crumb.formats.catalog import Format
from crumb.formats.grid import GroupParameters

if TYPE_CHECKING:
    from crumb.solve.factored import Factored


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
    refits: int = 3  # sweeps with scales fitted anew to the targets; with search, static groups
    refinements: int = 2  # rounds of codes and scales under all of H, after the sweeps
    asymmetric: bool = True  # targets answer for what earlier layers lost (calibrate/float_stream)
    training_steps: int = 0  # of each block's codes and scales, after the solver
    model_steps: int = 0  # of all blocks' codes and scales together, after that
    block_columns: int = 128
    token_power: float = 0.5  # of the loss's squared gradient, as a token's weight; 0: all alike
    strict: bool = False  # a fallback is an error
    lowest_zero_point: int = 0  # of a variable zero
    keep_columns: float = 0.0  # most columns of a matrix that may be floats, as a share
    solved_embedding_bits: int = 6  # embeddings of at most so many are solved too, or rounded

    def solves_embedding(self, format: Format) -> bool:
        """Whether the rows of an embedding are solved by GPTQ; others are rounded."""
        return self.method is Method.GPTQ and format.bits <= self.solved_embedding_bits

    @property
    def weighs_tokens(self) -> bool:
        """Whether a backward pass says how much each calibration token counts."""
        return self.method is Method.GPTQ and self.token_power > 0.0

    @property
    def corrects(self) -> bool:
        """Whether the float model runs beside, and the targets answer for what was lost."""
        return self.method is Method.GPTQ and self.asymmetric

    @property
    def trains(self) -> bool:
        """Whether each block is trained against the float one's output."""
        return self.method is Method.GPTQ and self.training_steps > 0

    @property
    def trains_together(self) -> bool:
        """Whether all blocks are trained together against the float model's distributions."""
        return self.method is Method.GPTQ and self.model_steps > 0

    @property
    def grid(self) -> tuple[Scales, int]:
        """What the fit of a group's grid goes by."""
        return self.scales, self.lowest_zero_point


AS_PUBLISHED = SolveSettings(
    scales=Scales.MINMAX,
    damping=0.01,
    act_order=False,
    static_groups=False,
    refits=0,
    refinements=0,
    asymmetric=False,
    token_power=0.0,
    solved_embedding_bits=0,
)
"""GPTQ as its paper and the seeds of this project ran it."""


@dataclass(frozen=True)
class LayerProblem:
    """One matrix to quantize."""

    name: str
    weights: NDArray[np.float32]  # (out_features, in_features); a solver does not change it
    # (in_features, in_features), or its factor, which layers share; None only for Method.ROUND
    hessian: NDArray[np.float64] | Factored | None
    tokens: int
    format: Format
    settings: SolveSettings
    first_row: int = 0  # of the whole matrix, when these are only some of its rows
    # (count,) ascending columns that are floats; of a Factored they are the last of its order
    columns: NDArray[np.intp] | None = None

    def importance(self) -> NDArray[np.float32]:
        """How much the error of each column counts, with mean 1, (in_features,)."""
        if self.hessian is None:
            return np.ones(self.weights.shape[1], np.float32)
        hessian = self.hessian
        counts = hessian.diagonal() if isinstance(hessian, np.ndarray) else hessian.importance
        mean = counts.mean() or 1.0
        return np.maximum(counts / mean, 1e-6).astype(np.float32)

    def check(self) -> None:
        """Refuse what no solver can work with. Raises: SolveError, UsageError."""
        in_features = self.weights.shape[1]
        self.format.check_width(in_features, self.name)
        check_groups_fit_order(self.settings, self.format.groups(in_features), self.name)
        check_super_blocks(self.settings, self.format, self.name)
        check_columns(self.settings, self.name)
        check_finite(self.weights, self.name, self.first_row)


def check_groups_fit_order(settings: SolveSettings, groups: int, name: str) -> None:
    """Refuse groups fitted along the sweep when the sweep leaves the stored order of columns.

    A group is a run of stored columns: no format stores which group a column went to.
    Raises: UsageError.
    """
    sweeps = settings.method is Method.GPTQ
    if sweeps and settings.act_order and not settings.static_groups and groups > 1:
        raise UsageError(
            "act_order needs static_groups",
            where=name,
            found=f"act_order, no static_groups, {groups} groups in a row",
            do="Keep static_groups, or switch act_order off too",
        )


def check_super_blocks(settings: SolveSettings, format: Format, name: str) -> None:
    """Refuse groups fitted along the sweep where a super-block's groups share a scale.

    Raises: UsageError.
    """
    if settings.method is Method.GPTQ and not settings.static_groups and format.row.super_block:
        raise UsageError(
            "the groups of a super-block cannot be fitted one after the other",
            where=name,
            expected="static_groups, for one fp16 scale is all groups' of a super-block",
            found=format.name,
            do="Keep static_groups (drop --as-published), or choose a format without super-blocks",
        )


def check_columns(settings: SolveSettings, name: str) -> None:
    """Refuse groups fitted along the sweep beside float columns, which come last in it.

    Raises: UsageError.
    """
    if settings.keep_columns and settings.method is Method.GPTQ and not settings.static_groups:
        raise UsageError(
            "float columns need static_groups",
            where=name,
            found="keep_columns, no static_groups",
            do="Keep static_groups (drop --as-published), or drop --keep-columns",
        )


def check_finite(weights: NDArray[np.float32], name: str, first_row: int = 0) -> None:
    """Refuse NaN and infinite weights, naming the first; a matrix or a vector.

    Raises: SolveError.
    """
    # A sum is finite only if every term is; overflow of the f64 sum needs larger terms than f32.
    with np.errstate(invalid="ignore"):
        if np.isfinite(np.sum(weights, dtype=np.float64)):
            return
    place = tuple(np.argwhere(~np.isfinite(weights))[0])
    shown = ", ".join(str(index) for index in (first_row + place[0], *place[1:]))
    raise SolveError(
        "the checkpoint's weights are not finite",
        where=f"{name}[{shown}]",
        expected="finite numbers",
        found=weights[place],
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
    # (in_features,) squared error of each column times H_jj; None without H
    column_errors: NDArray[np.float64] | None = field(default=None, compare=False)

    @property
    def relative_error(self) -> float | None:
        if self.error is None or self.energy is None:
            return None
        return self.error / max(self.energy, float(np.finfo(np.float64).tiny))


def join_reports(parts: list[tuple[SolveReport, int]]) -> SolveReport:
    """The report of a matrix that was solved in parts of so many rows each."""
    first = parts[0][0]
    rows = sum(count for _, count in parts)
    errors = [part.error for part, _ in parts if part.error is not None]
    energies = [part.energy for part, _ in parts if part.energy is not None]
    columns = [part.column_errors for part, _ in parts if part.column_errors is not None]
    return SolveReport(
        error=sum(errors) if errors else None,
        energy=sum(energies) if energies else None,
        zero_share=sum(part.zero_share * count for part, count in parts) / rows,
        damping=first.damping,
        fallback=first.fallback,
        column_errors=np.sum(columns, axis=0) if columns else None,
    )


def worst_columns_share(errors: NDArray[np.float64]) -> float | None:
    """Share of an error in the worst 1 % of columns, one at least; None where there is none."""
    count, total = -(-len(errors) // 100), float(errors.sum())
    return float(np.sort(errors)[-count:].sum()) / total if total > 0 else None


@dataclass(frozen=True)
class LayerSolution:
    """What a solver chose."""

    codes: NDArray[np.uint8]  # (out_features, in_features)
    parameters: GroupParameters
    report: SolveReport
    columns: NDArray[np.float16] | None = None  # (out_features, count) beside what codes decode to


def join_parameters(parts: list[GroupParameters], axis: int) -> GroupParameters:
    """Parameters of consecutive rows (axis 0) or groups (axis 1)."""
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=axis)
        for name, array in vars(parts[0]).items()
        if array is not None
    }
    return GroupParameters(**joined)
