"""One quantized matrix in training: latent codes and group scales that follow gradients.

In: a Format, codes and parameters to begin with, then gradients of a loss at the decoded weights.
Out: weights, and in the end codes and parameters again. A code is its latent number rounded, and
its gradient is taken as if it were not (straight-through); a scale moves by a share of itself.
With a table the latent number is a place among its levels in ascending order.
Steps are Adam's (arXiv 1412.6980) with one mean square for a whole array: what has the larger
gradient moves further, so that few codes change at a time. Sub-scales stay as they are, and scales
that are powers of two.
Arrays are NumPy's, or lie where `as_array` puts them (PyTorch).
Source: GSQ (arXiv 2604.18556) and AutoRound (arXiv 2309.05516) train rounding on a plain grid;
PV-Tuning (arXiv 2405.14852) on why few codes should change at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array
from numpy.typing import NDArray

from crumb.formats.catalog import Format, ScaleKind, ZeroKind
from crumb.formats.float_columns import FloatColumns
from crumb.formats.grid import GroupParameters, group_of_column, levels_of
from crumb.kernels.threads import over_rows
from crumb.operations.operation import Array, as_numpy

Floats = NDArray[np.float32]

FIRST_DECAY, SECOND_DECAY, TINY = 0.9, 0.99, 1e-12

OUTSIDE = 0.49
"""How far a latent code may lie beyond the first and the last."""

NEAREST = 0.45
"""How far from its code a latent begins at most, on the side where the float weight lies."""


@dataclass(frozen=True)
class Rates:
    """How far a gradient of usual size moves what it meets, at the first step."""

    code: float  # a latent code, in codes
    scale: float  # a scale, as a share of itself


@dataclass
class AdamMeans:
    """Running means of a gradient and of its mean square over the array."""

    first: Array
    second: Array  # (1,)

    @classmethod
    def of(cls, values: Array) -> AdamMeans:
        xp = array_namespace(values)
        zeros = xp.zeros_like(values)
        return cls(zeros, zeros[:1, 0] * 0)

    def follow(self, mean_square: float, step: int) -> float:
        """Take in a gradient's mean square. Steps count from 1.

        Out: the factor by which the first mean becomes a step whose usual entry is 1.
        """
        self.second *= SECOND_DECAY
        self.second += (1 - SECOND_DECAY) * mean_square
        spread = math.sqrt(float(self.second[0]) / (1 - SECOND_DECAY**step))
        return 1 / ((spread + TINY) * (1 - FIRST_DECAY**step))

    def direction(self, gradient: Array, rows: slice, factor: float) -> Array:
        """Where some rows go, with what `follow` gave."""
        first = self.first[rows]
        first *= FIRST_DECAY
        first += (1 - FIRST_DECAY) * gradient
        return first * factor


@dataclass
class TrainedMatrix:
    """A matrix whose codes and scales are on their way."""

    format: Format
    parameters: GroupParameters  # as it began
    latent: Array  # (rows, columns) codes before they are rounded
    scale: Array  # (rows, blocks), a block is a group where no super-blocks are
    sub_scale: Array | None  # (rows, groups) of super-blocks
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
        floats: Floats | None = None,
        as_array: Callable[[Any], Array] = np.asarray,
    ) -> TrainedMatrix:
        """From what a solver found. Shapes: codes (rows, columns).

        `floats`: the weights that were quantized; latent codes begin on their side.
        """
        group = group_of_column(format, codes.shape[1])
        group_scale, sub_scale = parameters.group_scale(), parameters.sub_scale
        groups = np.arange(group_scale.shape[1])
        equal = np.array_equal(group, np.repeat(groups, len(group) // len(groups)))
        sums = None if equal else as_array((group[:, None] == groups).astype(np.float32))
        places: NDArray[np.integer[Any]] = codes
        levels = slopes = None
        if format.row.table is not None:
            ascending, _ = levels_of(format.row)
            places = np.searchsorted(ascending, np.array(format.row.table, np.float32)[codes])
            levels, slopes = as_array(ascending), as_array(np.gradient(ascending))
        latent, offset = places.astype(np.float32), parameters.offset(format)
        if floats is not None:
            exact = _exact_places(format, floats, group_scale[:, group], offset[:, group])
            latent += np.clip(exact - latent, -NEAREST, NEAREST)
        added = coded = None
        if columns is not None:
            dense, where = np.zeros(codes.shape, np.float32), np.ones(codes.shape[1], np.float32)
            columns.add_to(dense)
            where[columns.places] = 0
            added, coded = as_array(dense), as_array(where)
        return cls(
            format,
            parameters,
            as_array(latent),
            as_array(parameters.scale.astype(np.float32)),
            None if sub_scale is None else as_array(sub_scale.astype(np.float32)),
            as_array(offset),
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

    def _group_scale(self, scale: Array, rows: slice) -> Array:
        """What blocks' scales make of the groups'. Shapes: (all rows, blocks) -> (rows, groups)."""
        if self.sub_scale is None:
            return scale[rows]
        xp, sub_scale = array_namespace(scale), self.sub_scale[rows]
        in_blocks = xp.reshape(sub_scale, (sub_scale.shape[0], scale.shape[1], -1))
        return xp.reshape(in_blocks * scale[rows][..., None], sub_scale.shape)

    def weights(self, as_halves: bool = False) -> Array:
        """What the codes decode to now, or with scales as they are stored; (rows, columns)."""
        xp = array_namespace(self.latent)
        weights, blocks = xp.empty_like(self.latent), self.scale
        if as_halves:
            blocks = xp.astype(xp.astype(blocks, xp.float16), xp.float32)

        def work(rows: slice) -> None:
            scale = xp.take(self._group_scale(blocks, rows), self.group, axis=1)
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

    def step(self, gradient: Array, left: float, step: int, rates: Rates) -> None:
        """Follow the gradient at the weights; `left` is the share of the rates that is left.

        Shapes: gradient (rows, columns), which is used up. Steps count from 1.
        """
        of_scale = self._to_latents(gradient)
        along = self.code_means.follow(_mean_square(gradient), step)
        grown = self.scale_means.follow(_mean_square(of_scale), step)
        xp = array_namespace(self.latent)

        def work(rows: slice) -> None:
            latent = self.latent[rows]
            direction = self.code_means.direction(gradient[rows], rows, along)
            latent -= rates.code * left * direction
            latent[...] = xp.clip(latent, -OUTSIDE, self.last + OUTSIDE)
            if self.format.row.scale is ScaleKind.POWER:
                return
            scale = self.scale[rows]
            direction = self.scale_means.direction(of_scale[rows], rows, grown)
            scale *= 1 - rates.scale * left * direction

        self._over_rows(work)

    def _to_latents(self, gradient: Array) -> Array:
        """From a gradient at the weights, in its place, that at the latent codes.

        Out: that at the scales as shares of themselves, (rows, blocks).
        """
        xp = array_namespace(gradient)
        of_scale = xp.empty_like(self.scale)

        def work(rows: slice) -> None:
            along = gradient[rows]
            if self.coded is not None:
                along *= self.coded
            levels, slope = self._levels(rows)
            if self.format.zero is not ZeroKind.MINIMUM:
                levels = levels - xp.take(self.offset[rows], self.group, axis=1)
            scale = self._group_scale(self.scale, rows)
            by_group = self._by_group(levels * along) * scale
            of_scale[rows] = xp.sum(xp.reshape(by_group, (*of_scale[rows].shape, -1)), axis=-1)
            along *= xp.take(scale, self.group, axis=1) * slope

        self._over_rows(work)
        return of_scale

    def solution(self) -> tuple[NDArray[np.uint8], GroupParameters]:
        """Codes and parameters as they are stored."""
        scale = as_numpy(self.scale).astype(np.float16)
        return self.codes(), replace(self.parameters, scale=scale)

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
        return xp.sum(xp.reshape(values, (*self.offset[: len(values)].shape, -1)), axis=-1)

    def _over_rows(self, work: Callable[[slice], None]) -> None:
        """Some rows at a time where processors share them, or all at once."""
        if is_numpy_array(self.latent):
            over_rows(len(self.latent), work)
        else:
            work(slice(0, self.latent.shape[0]))


def _exact_places(format: Format, weights: Floats, scale: Floats, offset: Floats) -> Floats:
    """Where weights lie among the codes, or among a table's levels. All shapes are equal."""
    is_minimum = format.zero is ZeroKind.MINIMUM
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = (weights - offset) / scale if is_minimum else weights / scale + offset
    exact = np.where(np.isfinite(quotient), quotient, np.float32(0))
    if format.row.table is None:
        return exact
    levels, _ = levels_of(format.row)
    return np.interp(exact, levels, np.arange(len(levels))).astype(np.float32)


def _mean_square(values: Array) -> float:
    """The same whatever shares out the rows."""
    xp = array_namespace(values)
    total = float(xp.sum(xp.sum(values * values, axis=1)))
    return total / float(math.prod(values.shape))
