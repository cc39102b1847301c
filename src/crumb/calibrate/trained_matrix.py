"""One quantized matrix in training: latent codes and group scales that follow gradients.

In: a Format, codes and parameters to begin with, then gradients of a loss at the decoded weights.
Out: weights, and in the end codes and parameters again. A code is its latent number rounded, and
its gradient is taken as if it were not (straight-through); a scale moves by a share of itself.
Steps are Adam's (arXiv 1412.6980). Scales of super-blocks stay as they are.
Source: GSQ (arXiv 2604.18556) and AutoRound (arXiv 2309.05516) train rounding on a plain grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.float_columns import FloatColumns
from crumb.formats.grid import GroupParameters, decode_columns, group_of_column
from crumb.kernels.threads import over_rows

Floats = NDArray[np.float32]

CODE_RATE, SCALE_RATE = 0.02, 7e-4
"""How far a step moves a latent code, in codes, and a scale, as a share of itself, at first."""

FIRST_DECAY, SECOND_DECAY, TINY = 0.9, 0.99, 1e-12

OUTSIDE = 0.49
"""How far a latent code may lie beyond the first and the last."""


@dataclass
class AdamMeans:
    """Running means of a gradient and of its square, as Adam has them."""

    first: Floats
    second: Floats

    @classmethod
    def of(cls, values: Floats) -> AdamMeans:
        return cls(np.zeros_like(values), np.zeros_like(values))

    def direction(self, gradient: Floats, rows: slice, step: int) -> Floats:
        """Where some rows go, about 1 in size; `gradient` is used up. Steps count from 1."""
        first, second = self.first[rows], self.second[rows]
        first *= np.float32(FIRST_DECAY)
        first += np.float32(1 - FIRST_DECAY) * gradient
        second *= np.float32(SECOND_DECAY)
        second += np.float32(1 - SECOND_DECAY) * np.square(gradient, out=gradient)
        spread = np.sqrt(second / np.float32(1 - SECOND_DECAY**step))
        spread += np.float32(TINY)
        direction: Floats = first / (spread * np.float32(1 - FIRST_DECAY**step))
        return direction


@dataclass
class TrainedMatrix:
    """A matrix whose codes and scales are on their way."""

    format: Format
    parameters: GroupParameters  # as it began
    latent: Floats  # (rows, columns) codes before they are rounded
    scale: Floats  # (rows, groups)
    offset: Floats  # (rows, groups)
    group: NDArray[np.int32]  # (columns,)
    columns: FloatColumns | None = None  # that are added, and stay as they are
    code_means: AdamMeans = field(init=False)
    scale_means: AdamMeans = field(init=False)

    def __post_init__(self) -> None:
        self.code_means, self.scale_means = AdamMeans.of(self.latent), AdamMeans.of(self.scale)

    @classmethod
    def of(
        cls,
        format: Format,
        codes: NDArray[np.uint8],
        parameters: GroupParameters,
        columns: FloatColumns | None = None,
    ) -> TrainedMatrix:
        """From what a solver found. Shapes: codes (rows, columns)."""
        return cls(
            format,
            parameters,
            codes.astype(np.float32),
            parameters.group_scale(),
            parameters.offset(format),
            group_of_column(format, codes.shape[1]),
            columns,
        )

    def codes(self, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """The latent codes rounded."""
        rounded = np.clip(np.rint(self.latent[rows]), 0, self.format.row.largest_code)
        return rounded.astype(np.uint8)

    def weights(self) -> Floats:
        """What the codes decode to now, (rows, columns)."""
        weights = np.empty_like(self.latent)

        def work(rows: slice) -> None:
            scale, offset = self.scale[rows][:, self.group], self.offset[rows][:, self.group]
            weights[rows] = decode_columns(self.codes(rows), scale, offset, self.format.zero)

        over_rows(len(weights), work)
        if self.columns is not None:
            self.columns.add_to(weights)
        return weights

    def step(self, gradient: Floats, rate: float, step: int) -> None:
        """Follow the gradient at the weights; `rate` is the share of the first rates that is left.

        Shapes: gradient (rows, columns).
        """
        highest = np.float32(self.format.row.largest_code + OUTSIDE)
        starts = np.flatnonzero(np.diff(self.group, prepend=-1))

        def work(rows: slice) -> None:
            along = np.array(gradient[rows], np.float32, order="C")
            if self.columns is not None:
                along[:, self.columns.places] = 0
            levels = self.codes(rows).astype(np.float32)
            if self.format.zero is not ZeroKind.MINIMUM:
                levels -= self.offset[rows][:, self.group]
            of_scale = np.add.reduceat(along * levels, starts, axis=1) * self.scale[rows]
            along *= self.scale[rows][:, self.group]
            moved = self.code_means.direction(along, rows, step)
            latent = self.latent[rows]
            latent -= np.float32(CODE_RATE * rate) * moved
            np.clip(latent, np.float32(-OUTSIDE), highest, out=latent)
            if self.format.row.super_block is None:
                grown = self.scale_means.direction(of_scale, rows, step)
                self.scale[rows] *= 1 - np.float32(SCALE_RATE * rate) * grown

        over_rows(len(gradient), work)

    def solution(self) -> tuple[NDArray[np.uint8], GroupParameters]:
        """Codes and parameters as they are stored."""
        if self.format.row.super_block is not None:
            return self.codes(), self.parameters
        return self.codes(), replace(self.parameters, scale=self.scale.astype(np.float16))
