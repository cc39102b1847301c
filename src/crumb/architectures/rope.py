"""Which rotary position embedding a configuration asks for.

In: the scaling of a configuration (rope_scaling or rope_parameters) and the theta beside it.
Out: a Rope. Refuses scalings whose frequencies change with every token of a text (dynamic): cached
keys would no longer fit. Those of longrope are chosen by the longest text that is to be run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crumb.architectures.configuration import MISSING, as_number, read_flag, refuse
from crumb.operations.rope import LONGROPE, ORIGINAL, SCALINGS, Rope

NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": ("factor", ORIGINAL),
    LONGROPE: ("factor", ORIGINAL),
}
"""The settings that a kind cannot do without."""

OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    LONGROPE: ("attention_factor",),
}
"""The settings that a kind has its own values for: null means those, and so does a zero beta."""


def read_rope(
    scaling: Mapping[str, Any], dimensions: int, theta: float, positions: int, original: object
) -> Rope:
    """The rope of a configuration's scaling; `positions` is the longest text of the model.

    `original` is the longest text of the training before, where it stands outside the scaling.
    Raises: CheckpointError for an unknown kind or an unusable setting, naming it.
    """
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise refuse("rope_type", f"one of {', '.join(SCALINGS)}", kind)
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise refuse("rope_parameters", "one rotary embedding for all blocks", scaling)
    stated = {key: value for key, value in scaling.items() if value is not None}
    if original is not None:
        stated[ORIGINAL] = original
    stated.setdefault(ORIGINAL, positions)
    if kind in ("yarn", LONGROPE):
        stated.setdefault("factor", positions / as_number(stated[ORIGINAL], ORIGINAL))
    settings = {key: as_number(stated.get(key, MISSING), key) for key in NEEDED[kind]}
    for key in OPTIONAL.get(kind, ()):
        if stated.get(key, 0) != 0 or (key == "attention_factor" and key in stated):
            settings[key] = as_number(stated[key], key)
    if kind == "yarn" and not read_flag(stated, "truncate", True):
        settings["truncate"] = 0.0
    if kind == "llama3" and settings["high_freq_factor"] < settings["low_freq_factor"]:
        raise refuse("high_freq_factor", "at least low_freq_factor", settings["high_freq_factor"])
    factors = [_factors(stated, key, dimensions) for key in FACTORS] if kind == LONGROPE else []
    return Rope(dimensions, theta, tuple(sorted(settings.items())), kind, *factors)


FACTORS = ("short_factor", "long_factor")


def _factors(stated: Mapping[str, Any], key: str, dimensions: int) -> tuple[float, ...]:
    """A number for each pair of features. Raises: CheckpointError."""
    factors = stated.get(key, MISSING)
    if not isinstance(factors, list | tuple) or len(factors) != dimensions // 2:
        raise refuse(key, f"a list of {dimensions // 2} numbers", factors)
    return tuple(as_number(factor, key) for factor in factors)
