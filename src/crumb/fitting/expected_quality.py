"""What a quantization is expected to cost, from what others of other sizes were measured to cost.

In: a model's parameters, bits per weight and codes of its blocks. Out: mean KL in nats, and bits
per byte of a float model, each an interpolation between measured models, which the result names.
Refuses nothing: beyond the measured sizes the nearest one speaks. Expectations are no promises.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

Points = Sequence[tuple[float, float]]

INTEGER = "int"


@dataclass(frozen=True)
class MeasuredModel:
    """Mean KL of one model at some sizes, against its float self."""

    model: str
    parameters: float
    # (bits per weight of the blocks, KL), rising and falling strictly, by what codes stand for
    points: Mapping[str, Points]

    def points_of(self, codes: str) -> Points:
        """Of such codes; where none were measured, of whole numbers."""
        return self.points.get(codes, self.points[INTEGER])


MEASURED = (
    # wikitext2-test, protocol llama.cpp, 20 windows, groups of 64; 3 and 4 bits with weighted
    # tokens (docs/quality.md), which change nothing at 2. Super-blocks of 2 and 4 bits: whole
    # numbers' times .782 and .413, what `fast` has on excerpt-evaluation
    MeasuredModel(
        "SmolLM2-135M",
        1.345e8,
        {
            INTEGER: ((2.25, 1.031), (3.25, 0.228), (4.25, 0.0624)),
            "super": ((2.21, 0.806), (3.21, 0.187), (4.27, 0.0258)),
        },
    ),
    # GGUF types with an importance matrix, wikitext2-test, protocol llama.cpp (docs/quality.md)
    MeasuredModel(
        "Llama-3-8B",
        8.03e9,
        {
            INTEGER: (
                (2.06, 0.812),
                (2.70, 0.326),
                (3.06, 0.184),
                (3.90, 0.0844),
                (4.25, 0.0363),
                (4.83, 0.0282),
                (6.56, 0.0055),
                (8.5, 0.0014),
            )
        },
    ),
)
"""By rising parameters."""

HALVING_BITS = 0.5
"""Beyond the last point a bit more divides the error by four: half a bit halves it."""

BITS_PER_BYTE: Points = ((6.74e9, 0.663), (1.30e10, 0.621), (3.25e10, 0.539), (6.52e10, 0.481))
"""LLaMA's sizes: their perplexity on wikitext2-test, protocol gptq, over its bytes."""


@dataclass(frozen=True)
class Expectation:
    """A number, and whose measurements it comes from."""

    value: float
    of: str


def expected_kl(parameters: float, bits: float, codes: str = INTEGER) -> Expectation:
    """Mean KL of such a model at so many bits per weight of its blocks, of such codes."""
    sizes = [log(each.parameters) for each in MEASURED]
    levels = [log(_at(each.points_of(codes), bits)) for each in MEASURED]
    value = exp(interpolated(list(zip(sizes, levels, strict=True)), log(parameters)))
    return Expectation(value, " and ".join(each.model for each in MEASURED))


def expected_bits_per_byte(parameters: float) -> Expectation:
    """Of a float model on English text, by its size alone: models of one size differ much more."""
    points = [(log(size), value) for size, value in BITS_PER_BYTE]
    (x, y), (next_x, next_y) = points[0], points[-1]
    slope = (next_y - y) / (next_x - x)
    at = log(parameters)
    value = y + slope * (at - x) if at < x else interpolated(points, at)
    return Expectation(value, "LLaMA's sizes")


def _at(points: Points, bits: float) -> float:
    """KL at some bits: straight lines between logarithms, the last slope known beyond the last."""
    last_bits, last = points[-1]
    if bits > last_bits:
        return last * exp(-log(2) * (bits - last_bits) / HALVING_BITS)
    logs = [(each, log(value)) for each, value in points]
    if bits < logs[0][0]:
        (x, y), (next_x, next_y) = logs[:2]
        return exp(y + (next_y - y) / (next_x - x) * (bits - x))
    return exp(interpolated(logs, bits))


def interpolated(points: Points, at: float) -> float:
    """Straight lines between points; beyond them the nearest."""
    places = [x for x, _ in points]
    index = bisect_left(places, at)
    if index == 0:
        return points[0][1]
    if index == len(points):
        return points[-1][1]
    (x, y), (next_x, next_y) = list(pairwise(points))[index - 1]
    return y + (next_y - y) * (at - x) / (next_x - x)
