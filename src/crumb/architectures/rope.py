"""Rotary position embedding: which frequencies a configuration asks for.

In: a configuration as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) writes it.
Out: a Rope with one frequency per pair of features. Refuses scalings whose frequencies change
with the length of the text (dynamic, longrope): cached keys would no longer fit.
Source: Su et al. 2021 (arXiv 2104.09864); YaRN, arXiv 2309.00071; "llama3" as Meta published it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError

Frequencies = NDArray[np.float64]


@dataclass(frozen=True)
class Rope:
    """One family's rotary embedding."""

    dimensions: int  # features of a head that rotate
    theta: float
    scaling: tuple[tuple[str, float], ...] = ()  # sorted numeric settings of the scaling
    kind: str = "default"

    def frequencies(self) -> Frequencies:
        """Radians per position of each pair, (dimensions / 2,)."""
        exponent = np.arange(0, self.dimensions, 2, dtype=np.float64) / self.dimensions
        return SCALINGS[self.kind](self.theta**-exponent, self, dict(self.scaling))

    def magnitude(self) -> float:
        """Factor on cosine and sine (YaRN's attention factor)."""
        settings = dict(self.scaling)
        if self.kind != "yarn":
            return 1.0
        if "attention_factor" in settings:
            return settings["attention_factor"]
        factor = settings["factor"]
        if "mscale" in settings and "mscale_all_dim" in settings:
            return _mscale(factor, settings["mscale"]) / _mscale(factor, settings["mscale_all_dim"])
        return _mscale(factor, 1.0)

    def __str__(self) -> str:
        scaling = "".join(f",{key}={value:g}" for key, value in self.scaling)
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
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - blend) * inverse / factor + blend * inverse


def _yarn(inverse: Frequencies, rope: Rope, settings: dict[str, float]) -> Frequencies:
    original = settings["original_max_position_embeddings"]

    def pair_that_turns(times: float) -> float:
        return (rope.dimensions * math.log(original / (times * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low = pair_that_turns(settings.get("beta_fast", 32.0))
    high = pair_that_turns(settings.get("beta_slow", 1.0))
    if settings.get("truncate", 1.0):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dimensions - 1)
    ramp = np.clip((np.arange(len(inverse)) - low) / max(high - low, 0.001), 0.0, 1.0)
    return inverse / settings["factor"] * ramp + inverse * (1 - ramp)


SCALINGS: dict[str, Callable[[Frequencies, Rope, dict[str, float]], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}

NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}


def read_rope(configuration: Mapping[str, Any], dimensions: int, theta: float) -> Rope:
    """The rope of a configuration; `theta` is the family's default base.

    Raises: CheckpointError for an unknown kind or a missing setting, naming both.
    """
    given = configuration.get("rope_parameters") or configuration.get("rope_scaling") or {}
    theta = float(given.get("rope_theta") or configuration.get("rope_theta") or theta)
    kind = str(given.get("rope_type") or given.get("type") or "default")
    if kind not in SCALINGS:
        raise CheckpointError(
            "this rotary scaling is not supported",
            where="config.json: rope_type",
            expected=f"one of {', '.join(SCALINGS)}",
            found=repr(kind),
        )
    settings = {
        key: float(value)
        for key, value in given.items()
        if isinstance(value, int | float) and key not in ("rope_theta", "partial_rotary_factor")
    }
    if "original_max_position_embeddings" in NEEDED[kind]:
        settings.setdefault(
            "original_max_position_embeddings", float(configuration["max_position_embeddings"])
        )
    for key in NEEDED[kind]:
        if not settings.get(key, 0.0) > 0.0:
            raise CheckpointError(
                f"rotary scaling {kind} needs a positive {key}",
                where="config.json: rope_parameters",
                found=repr(given.get(key)),
            )
    scaling = tuple(sorted(settings.items())) if kind != "default" else ()
    return Rope(dimensions, theta, scaling, kind)
