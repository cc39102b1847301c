"""One quantized matrix in training: latent codes and group scales that follow gradients.

In: a Format, codes and parameters to begin with, then gradients of a loss at the decoded weights.
Out: weights, and in the end codes and parameters again. A code is its latent number rounded, and
its gradient is taken as if it were not (straight-through); a scale moves by a share of itself.
With a table the latent number is a place among its levels in ascending order.
Steps are Adam's (arXiv 1412.6980). Scales of super-blocks stay as they are. Arrays are NumPy's, or
lie where `as_array` puts them (PyTorch).
Source: GSQ (arXiv 2604.18556) and AutoRound (arXiv 2309.05516) train rounding on a plain grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array
from numpy.typing import NDArray

from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.float_columns import FloatColumns
from crumb.formats.grid import GroupParameters, group_of_column, levels_of
from crumb.kernels.threads import over_rows
from crumb.operations.operation import Array, as_numpy

CODE_RATE, SCALE_RATE = 0.02, 7e-4
"""How far a step moves a latent code, in codes, and a scale, as a share of itself, at first."""

FIRST_DECAY, SECOND_DECAY, TINY = 0.9, 0.99, 1e-12

OUTSIDE = 0.49
"""How far a latent code may lie beyond the first and the last."""


@dataclass
class AdamMeans:
    """Running means of a gradient and of its square, as Adam has them."""

    first: Array
    second: Array

    @classmethod
    def of(cls, values: Array) -> AdamMeans:
        xp = array_namespace(values)
        return cls(xp.zeros_like(values), xp.zeros_like(values))

    def direction(self, gradient: Array, rows: slice, step: int) -> Array:
        """Where some rows go, about 1 in size; `gradient` is used up. Steps count from 1."""
        first, second = self.first[rows], self.second[rows]
        first *= FIRST_DECAY
        first += (1 - FIRST_DECAY) * gradient
        gradient *= gradient
        second *= SECOND_DECAY
        gradient *= 1 - SECOND_DECAY
        second += gradient
        spread = array_namespace(second).sqrt(second / (1 - SECOND_DECAY**step))
        spread += TINY
        return first / (spread * (1 - FIRST_DECAY**step))


@dataclass
class TrainedMatrix:
    """A matrix whose codes and scales are on their way."""

    format: Format
    parameters: GroupParameters  # as it began
    latent: Array  # (rows, columns) codes before they are rounded
    scale: Array  # (rows, groups)
    offset: Array  # (rows, groups)
    group: Array  # (columns,)
    levels: Array | None  # (places,) of a table, ascending; None: a code is its own level
    slopes: Array | None  # (places,) how much a level grows from place to place
    sums: Array | None  # (columns, groups) 1 where a column is of a group; None: of equal widths
    columns: FloatColumns | None  # that are added, and stay as they are
    added: Array | None  # (rows, columns) those, beside zeros
    coded: Array | None  # (columns,) 1 where no float column is
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
        as_array: Callable[[Any], Array] = np.asarray,
    ) -> TrainedMatrix:
        """From what a solver found. Shapes: codes (rows, columns)."""
        group = group_of_column(format, codes.shape[1])
        scale = parameters.group_scale().astype(np.float32)
        groups = np.arange(scale.shape[1])
        equal = np.array_equal(group, np.repeat(groups, len(group) // len(groups)))
        sums = None if equal else as_array((group[:, None] == groups).astype(np.float32))
        places: NDArray[np.integer[Any]] = codes
        levels = slopes = None
        if format.row.table is not None:
            ascending, _ = levels_of(format.row)
            places = np.searchsorted(ascending, np.array(format.row.table, np.float32)[codes])
            levels, slopes = as_array(ascending), as_array(np.gradient(ascending))
        added = coded = None
        if columns is not None:
            dense, where = np.zeros(codes.shape, np.float32), np.ones(codes.shape[1], np.float32)
            columns.add_to(dense)
            where[columns.places] = 0
            added, coded = as_array(dense), as_array(where)
        return cls(
            format,
            parameters,
            as_array(places.astype(np.float32)),
            as_array(scale),
            as_array(parameters.offset(format)),
            as_array(group.astype(np.int64)),
            levels,
            slopes,
            sums,
            columns,
            added,
            coded,
        )

    @property
    def last(self) -> int:
        """The largest code, or the place of the largest level."""
        return self.format.row.largest_code if self.levels is None else self.levels.shape[0] - 1

    def places(self, rows: slice = slice(None)) -> Array:
        """The latent codes rounded, f32."""
        xp = array_namespace(self.latent)
        return xp.clip(xp.round(self.latent[rows]), 0.0, float(self.last))

    def codes(self) -> NDArray[np.uint8]:
        """What is stored of the latent codes."""
        places = as_numpy(self.places()).astype(np.uint8)
        return places if self.levels is None else levels_of(self.format.row)[1][places]

    def _levels(self, rows: slice) -> tuple[Array, Array | float]:
        """What the codes stand for, and by how much more the next ones do."""
        places = self.places(rows)
        if self.levels is None or self.slopes is None:
            return places, 1.0
        xp = array_namespace(places)
        at = xp.reshape(xp.astype(places, xp.int64), (-1,))
        level, slope = xp.take(self.levels, at, axis=0), xp.take(self.slopes, at, axis=0)
        return xp.reshape(level, places.shape), xp.reshape(slope, places.shape)

    def weights(self, as_halves: bool = False) -> Array:
        """What the codes decode to now, or with scales as they are stored; (rows, columns)."""
        xp = array_namespace(self.latent)
        weights = xp.empty_like(self.latent)
        scales = self.scale
        if as_halves and self.format.row.super_block is None:
            scales = xp.astype(xp.astype(scales, xp.float16), xp.float32)

        def work(rows: slice) -> None:
            scale = xp.take(scales[rows], self.group, axis=1)
            offset = xp.take(self.offset[rows], self.group, axis=1)
            levels, _ = self._levels(rows)
            if self.format.zero is ZeroKind.MINIMUM:
                weights[rows] = levels * scale + offset
            else:
                weights[rows] = (levels - offset) * scale
            if self.added is not None:
                weights[rows] += self.added[rows]

        self._over_rows(work)
        return weights

    def step(
        self, gradient: Array, rate: float, step: int, rates: tuple[float, float] | None = None
    ) -> None:
        """Follow the gradient at the weights; `rate` is the share of the first rates that is left.

        Shapes: gradient (rows, columns). `rates`: of codes and scales, where others are wanted.
        """
        xp = array_namespace(self.latent)
        highest = self.last + OUTSIDE
        code_rate, scale_rate = rates or (CODE_RATE, SCALE_RATE)

        def work(rows: slice) -> None:
            along = xp.asarray(gradient[rows], copy=True)
            if self.coded is not None:
                along *= self.coded
            levels, slope = self._levels(rows)
            if self.format.zero is not ZeroKind.MINIMUM:
                levels = levels - xp.take(self.offset[rows], self.group, axis=1)
            of_scale = self._by_group(levels * along) * self.scale[rows]
            along *= xp.take(self.scale[rows], self.group, axis=1) * slope
            latent = self.latent[rows]
            latent -= code_rate * rate * self.code_means.direction(along, rows, step)
            latent[...] = xp.clip(latent, -OUTSIDE, highest)
            if self.format.row.super_block is None:
                grown = self.scale_means.direction(of_scale, rows, step)
                scale = self.scale[rows]
                scale *= 1 - scale_rate * rate * grown

        self._over_rows(work)

    def solution(self) -> tuple[NDArray[np.uint8], GroupParameters]:
        """Codes and parameters as they are stored."""
        codes = self.codes()
        if self.format.row.super_block is not None:
            return codes, self.parameters
        scale = as_numpy(self.scale).astype(np.float16)
        return codes, replace(self.parameters, scale=scale)

    def state(self) -> dict[str, Array]:
        """The arrays that training moves, by name; they may be written into."""
        means = {"code": self.code_means, "scale": self.scale_means}
        arrays = {"latent": self.latent, "scale": self.scale}
        for name, each in means.items():
            arrays |= {f"{name}_first": each.first, f"{name}_second": each.second}
        return arrays

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave."""
        for name, array in self.state().items():
            array[...] = state[name]

    def _by_group(self, values: Array) -> Array:
        """Sums over each group's columns. Shapes: (rows, columns) -> (rows, groups)."""
        xp = array_namespace(values)
        if self.sums is not None:
            return xp.matmul(values, self.sums)
        return xp.sum(xp.reshape(values, (values.shape[0], self.scale.shape[1], -1)), axis=-1)

    def _over_rows(self, work: Callable[[slice], None]) -> None:
        """Some rows at a time where processors share them, or all at once."""
        if is_numpy_array(self.latent):
            over_rows(len(self.latent), work)
        else:
            work(slice(0, self.latent.shape[0]))
