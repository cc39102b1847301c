"""What the places of tokens do to attention scores, where nothing rotates or beside that.

In: a count of heads, places. Out: f32 slopes, buckets of distances, factors of queries.
Refuses nothing. Sources: slopes, arXiv 2108.12409, and for counts that are no power of two the
list that its authors' code continues with; buckets, arXiv 1910.10683, section 2.1; temperatures
as Llama 4's code has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Slopes:
    """Each head adds factor * slope * (place of the key - place of the query) to its scores."""

    factor: float = 1.0
    rounded: bool = False  # slopes, and their products with places, to bfloat16

    def slopes(self, heads: int) -> Floats:
        """(heads,), without the factor: powers of two, then those halfway between."""
        power = 1 << (heads.bit_length() - 1)
        even = np.arange(1, power + 1) / power
        between = (2 * np.arange(1, heads - power + 1) - 1) / (2 * power)
        slopes = np.exp2(-8.0 * np.concatenate([even, between])).astype(np.float32)
        return _rounded(slopes) if self.rounded else slopes

    def added(self, heads: int, queries: Places, keys: Places) -> Floats:
        """What scores have added, (heads, queries, keys), all places those of the whole text."""
        slopes = self.slopes(heads)[:, None, None]
        if self.rounded:
            at_key, at_query = (
                _rounded(slopes * places.astype(np.float32))
                for places in (keys[None, None, :], queries[None, :, None])
            )
            return np.float32(self.factor) * (at_key - at_query)
        apart = (keys[None, :] - queries[:, None]).astype(np.float32)
        return np.float32(self.factor) * (slopes * apart)


def _rounded(values: Floats) -> Floats:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


LANES = 16
"""Keys whose scores the native engine adds to at once."""


@dataclass(frozen=True)
class Buckets:
    """Distances of keys from their query, numbered: near ones alone, far ones together.

    What each bucket adds to the scores of each head is a table, (count, heads).
    """

    count: int
    farthest: int  # from here on all distances are one bucket
    both_ways: bool  # keys behind the query have half of the buckets; else they are at distance 0

    def numbered(self, apart: Places) -> Places:
        """The bucket of each place of a key minus that of its query, in f32 as T5 was trained."""
        count = self.count // 2 if self.both_ways else self.count
        first = np.where(apart > 0, count, 0) if self.both_ways else 0
        distance = np.abs(apart) if self.both_ways else np.maximum(-apart, 0)
        near = count // 2
        share = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(near))
        share = share / np.float32(math.log(self.farthest / near)) * np.float32(count - near)
        far = np.minimum(near + share.astype(np.int64), count - 1)
        numbered: Places = first + np.where(distance < near, distance, far)
        return numbered

    def spread(self, table: Floats) -> Floats:
        """What scores have added by distance, (heads, 2 * farthest + 2 * LANES - 1).

        The middle is distance 0. LANES distances from any on, held within farthest + LANES - 1
        behind and farthest ahead, are a row's neighbours.
        """
        reach = self.farthest + LANES - 1
        return np.ascontiguousarray(table[self.numbered(np.arange(-reach, reach + 1))].T)


@dataclass(frozen=True)
class Temperature:
    """A query at place p is multiplied by 1 + rate * ln(1 + floor((p + first) / span))."""

    rate: float
    span: float
    first: int = 0

    def factors(self, places: Places) -> Floats:
        """One for each place."""
        spans = np.floor((places + self.first) / self.span)
        return (1.0 + self.rate * np.log1p(spans)).astype(np.float32)
