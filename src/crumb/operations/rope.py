"""Rope: the frequencies of a rotary position embedding.

In: dimensions, theta and the settings of a scaling. Out: one frequency per pair of features.
Refuses nothing: architectures/rope.py reads and checks a configuration's settings.
Source: Su et al. 2021 (arXiv 2104.09864); YaRN, arXiv 2309.00071; "llama3" as Meta published it;
LongRoPE, arXiv 2402.13753.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frequencies = NDArray[np.float64]

ORIGINAL = "original_max_position_embeddings"
LONGROPE = "longrope"


@dataclass(frozen=True)
class Rope:
    """One family's rotary embedding."""

    dimensions: int  # features of a head that rotate
    theta: float
    scaling: tuple[tuple[str, float], ...] = ()  # sorted numeric settings of the scaling
    kind: str = "default"
    short_factors: tuple[float, ...] = ()  # of longrope, one for each pair
    long_factors: tuple[float, ...] = ()  # in texts longer than those of the training before

    def frequencies(self, longest_tokens: int = 0) -> Frequencies:
        """Radians per position of each pair, (dimensions / 2,); of texts up to so many tokens."""
        exponent = np.arange(0, self.dimensions, 2, dtype=np.float64) / self.dimensions
        inverse = np.power(self.theta, -exponent)
        if self.kind == LONGROPE:
            is_long = longest_tokens > dict(self.scaling)[ORIGINAL]
            scaled: Frequencies = inverse / (self.long_factors if is_long else self.short_factors)
            return scaled
        return SCALINGS[self.kind](inverse, self, dict(self.scaling))

    def magnitude(self) -> float:
        """Factor on cosine and sine (the attention factor of YaRN and longrope)."""
        settings = dict(self.scaling)
        if self.kind not in ("yarn", LONGROPE):
            return 1.0
        if "attention_factor" in settings:
            return settings["attention_factor"]
        factor = settings["factor"]
        if self.kind == LONGROPE:
            if factor <= 1.0:
                return 1.0
            return math.sqrt(1 + math.log(factor) / math.log(settings[ORIGINAL]))
        if "mscale" in settings and "mscale_all_dim" in settings:  # one alone has no effect
            return _mscale(factor, settings["mscale"]) / _mscale(factor, settings["mscale_all_dim"])
        return _mscale(factor, 1.0)

    def sharpness(self) -> float:
        """Factor on scores beside the root of the head's width (mscale_all_dim of DeepSeek)."""
        settings = dict(self.scaling)
        every = settings.get("mscale_all_dim", 0.0)
        return _mscale(settings["factor"], every) ** 2 if every else 1.0

    def __str__(self) -> str:
        scaling = "".join(f",{key}={value:g}" for key, value in self.scaling)
        for name, factors in (("short", self.short_factors), ("long", self.long_factors)):
            if factors:
                scaling += f",{name}={'/'.join(f'{factor:g}' for factor in factors)}"
        return f"{self.kind}(dimensions={self.dimensions},theta={self.theta:g}{scaling})"


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _default(inverse: Frequencies, _: Rope, __: dict[str, float]) -> Frequencies:
    return inverse


def _linear(inverse: Frequencies, _: Rope, settings: dict[str, float]) -> Frequencies:
    return inverse / settings["factor"]


def _llama3(inverse: Frequencies, _: Rope, settings: dict[str, float]) -> Frequencies:
    factor = settings["factor"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] * inverse / (2 * math.pi)
    # Llama 4's are equal: nothing lies between.
    blend = (
        np.clip((turns - low) / (high - low), 0, 1) if high > low else (turns > high).astype(float)
    )
    return (1 - blend) * inverse / factor + blend * inverse


def _yarn(inverse: Frequencies, rope: Rope, settings: dict[str, float]) -> Frequencies:
    original = settings[ORIGINAL]

    def pair_that_turns(times: float) -> float:
        return (rope.dimensions * math.log(original / (times * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low = pair_that_turns(settings.get("beta_fast", 32.0))
    high = pair_that_turns(settings.get("beta_slow", 1.0))
    if settings.get("truncate", 1.0):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dimensions - 1)
    ramp: Frequencies = np.clip((np.arange(len(inverse)) - low) / (high - low or 0.001), 0.0, 1.0)
    return inverse / settings["factor"] * ramp + inverse * (1 - ramp)


SCALINGS: dict[str, Callable[[Frequencies, Rope, dict[str, float]], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    LONGROPE: _default,
}
