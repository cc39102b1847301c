"""Rotary scaling in GGUF: keys for linear and yarn, tensors of frequency factors for others.

In: a checked Rope, or a file's keys and tensors of factors. Out: keys and tensors, or the
rope_scaling of a config.json. A factor divides the frequency of its pair of features.
Refuses other scalings, and factors that no llama3 scaling gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import shown
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.errors import CheckpointError, UsageError
from crumb.operations.rope import LONGROPE, ORIGINAL, Rope

Factors = NDArray[np.float32]

ROPE_FREQS = "rope_freqs.weight"
"""The tensor of frequency factors, (dimensions / 2,)."""

LONGROPE_TENSORS = {
    "long_factor": "rope_factors_long.weight",
    "short_factor": "rope_factors_short.weight",
}
FACTOR_TENSORS = (ROPE_FREQS, *LONGROPE_TENSORS.values())

SCALING = "rope.scaling"
TYPE, FACTOR = f"{SCALING}.type", f"{SCALING}.factor"
ORIGINAL_CONTEXT = f"{SCALING}.original_context_length"
MAGNITUDE = f"{SCALING}.attn_factor"
BALANCED = f"{SCALING}.yarn_log_multiplier"
GROWTH = "attention.temperature_scale"
BETAS = {"beta_fast": f"{SCALING}.yarn_beta_fast", "beta_slow": f"{SCALING}.yarn_beta_slow"}
YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""What llama.cpp has of its own: it does not read these keys."""

SLACK = 1e-4
"""Factors are f32 and made from f32 frequencies, whose error of 1e-6 the blend multiplies by at
most factor * high / (high - low), which is 43 for the factor of 32 of Llama 3.2."""

ROUNDING = 2.0**-23
"""Of a quotient that was stored as f32."""

LLAMAS = ("llama", "llama4")
LONGROPED = ("phi3",)
GROWING = ("mistral3",)
"""Architectures whose queries grow with the lengths of the training before."""

BALANCES = {"mistral3": 1.0, "deepseek2": 0.1}
"""Architectures whose cosines and sines keep their size though mscale is one -> that key's unit."""

SHARPENED = ("deepseek2",)
"""Architectures that sharpen scores by mscale: without it llama.cpp does so by its own factor."""

SMOOTH = ("gpt-oss",)
"""Architectures whose models do not round where yarn begins and ends, though llama.cpp does."""

USUAL = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 8192}


def scaling_keys(rope: Rope, architecture: str) -> dict[str, Value]:
    """The keys of a rope's scaling, without the architecture. Raises: UsageError."""
    settings = dict(rope.scaling)
    if rope.kind == "linear":
        return {TYPE: "linear", FACTOR: settings["factor"]}
    if rope.kind == "llama3" and architecture in LLAMAS:
        return {ORIGINAL_CONTEXT: int(settings[ORIGINAL])}
    if rope.kind == "default":
        return {}
    if rope.kind == LONGROPE and architecture in LONGROPED:
        return {ORIGINAL_CONTEXT: int(settings[ORIGINAL]), MAGNITUDE: rope.magnitude()}
    other = [key for key, usual in YARN_BETAS.items() if settings.get(key, usual) != usual]
    smooth = not settings.get("truncate", 1.0)
    if rope.kind != "yarn" or other or smooth != (architecture in SMOOTH):
        raise UsageError(
            f"llama.cpp's {architecture} has no such rotary scaling",
            where="config.json: rope_scaling",
            expected="default, linear, yarn with betas of 32 and 1, or llama3 for llamas",
            found=rope,
        )
    keys: dict[str, Value] = {
        TYPE: "yarn",
        FACTOR: settings["factor"],
        ORIGINAL_CONTEXT: int(settings[ORIGINAL]),
    }
    scale, every = settings.get("mscale", 0.0), settings.get("mscale_all_dim", 0.0)
    if architecture in SHARPENED and not scale == every != 0.0:
        raise UsageError(
            f"llama.cpp's {architecture} has no such rotary scaling",
            where="config.json: rope_scaling",
            expected="yarn with one number for mscale and mscale_all_dim",
            found=f"{scale:g} and {every:g}",
        )
    if architecture in BALANCES and scale == every:
        return keys | {BALANCED: BALANCES[architecture] * scale}
    extra = rope.magnitude() / _magnitude(settings["factor"])
    return keys if extra == 1.0 else keys | {MAGNITUDE: extra}


def _magnitude(factor: float) -> float:
    """The factor on cosine and sine that llama.cpp always applies with yarn."""
    return Rope(2, 2.0, (("factor", factor),), "yarn").magnitude()


def frequency_factors(rope: Rope | None) -> dict[str, Factors]:
    """The tensors of a rope, none where keys say it all."""
    if rope is not None and rope.kind == LONGROPE:
        factors = {"long_factor": rope.long_factors, "short_factor": rope.short_factors}
        return {
            name: np.array(factors[word], np.float32) for word, name in LONGROPE_TENSORS.items()
        }
    if rope is None or rope.kind != "llama3":
        return {}
    plain = replace(rope, kind="default", scaling=()).frequencies()
    return {ROPE_FREQS: (plain / rope.frequencies()).astype(np.float32)}


def read_scaling(
    metadata: Metadata, architecture: str, rope: Rope, factors: Mapping[str, Factors]
) -> dict[str, Any]:
    """The rope_scaling of a file, empty where it has none; `rope` is the embedding without.

    Raises: CheckpointError.
    """
    key = f"{architecture}.{TYPE}"
    # A file that gives a factor and no type means linear, as one of the old key does.
    factor_key = f"{architecture}.{FACTOR}"
    if factor_key not in metadata:
        old = f"{architecture}.rope.scale_linear"
        factor_key = old if old in metadata else factor_key
    has_factor = factor_key in metadata and metadata.number(factor_key) not in (0.0, 1.0)
    kind = metadata.text(key, "linear")
    if kind not in ("none", "linear", "yarn", *((LONGROPE,) if factors else ())):
        raise metadata.refuse(key, "none, linear or yarn")
    if factors:
        if has_factor and kind != "none":
            raise metadata.refuse(factor_key, f"no factor beside the tensor {min(factors)}")
        if ROPE_FREQS in factors:
            return _llama3_scaling(metadata, architecture, rope, factors[ROPE_FREQS])
        return _longrope_scaling(metadata, architecture, rope, factors)
    if kind == "none" or not has_factor:
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.number(factor_key)}
    return _yarn_scaling(metadata, architecture, metadata.number(factor_key))


def _yarn_scaling(metadata: Metadata, architecture: str, factor: float) -> dict[str, Any]:
    original = f"{architecture}.{ORIGINAL_CONTEXT}"
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    if original in metadata:
        scaling[ORIGINAL] = metadata.integer(original)
    for word, short in BETAS.items():
        if f"{architecture}.{short}" in metadata:
            scaling[word] = metadata.number(f"{architecture}.{short}")
    extra = metadata.number(f"{architecture}.{MAGNITUDE}", 1.0)
    if extra != 1.0:
        scaling["attention_factor"] = _tidy(extra * _magnitude(factor), ROUNDING)
    if architecture in GROWING:
        scaling["llama_4_scaling_beta"] = metadata.number(f"{architecture}.{GROWTH}")
    if architecture in BALANCES:
        key = f"{architecture}.{BALANCED}"
        balanced = metadata.number(key, 0.0) / BALANCES[architecture]
        if balanced:
            scaling |= dict.fromkeys(("mscale", "mscale_all_dim"), _tidy(balanced, ROUNDING))
        elif architecture in SHARPENED:
            raise metadata.refuse(key, "a number, by which scores are sharpened")
    return scaling | ({"truncate": False} if architecture in SMOOTH else {})


def _longrope_scaling(
    metadata: Metadata, architecture: str, rope: Rope, factors: Mapping[str, Factors]
) -> dict[str, Any]:
    """The longrope scaling of a file. Raises: CheckpointError for factors that cannot be."""
    scaling: dict[str, Any] = {"rope_type": LONGROPE}
    for word, name in LONGROPE_TENSORS.items():
        if name not in factors:
            raise CheckpointError(
                "factors of frequencies for long texts or short ones alone",
                where=metadata.path,
                expected=name,
            )
        _check_factors(f"{metadata.path}: {name}", rope, factors[name], least=0.0)
        scaling[word] = [float(str(factor)) for factor in factors[name]]
    extra = metadata.number(f"{architecture}.{MAGNITUDE}", 1.0)
    positions = metadata.integer(f"{architecture}.context_length")
    usual = _long_magnitude(positions, metadata.integer(f"{architecture}.{ORIGINAL_CONTEXT}"))
    if not math.isclose(extra, usual, rel_tol=ROUNDING):
        scaling["attention_factor"] = extra
    return scaling


def _long_magnitude(positions: int, original: int) -> float:
    """What longrope multiplies cosines and sines with where nothing says so."""
    settings = (("factor", positions / original), (ORIGINAL, float(original)))
    return Rope(2, 2.0, settings, LONGROPE).magnitude()


def _check_factors(where: str, rope: Rope, factors: Factors, least: float) -> None:
    """Refuse a wrong count, and numbers that divide no frequency. Raises: CheckpointError."""
    if factors.shape != (rope.dimensions // 2,) or not (
        np.isfinite(factors).all() and factors.min() > least
    ):
        raise CheckpointError(
            "factors of frequencies that cannot be",
            where=where,
            expected=f"{rope.dimensions // 2} numbers of at least {least:.2g}",
            found=shown(factors.tolist()),
        )


def _llama3_scaling(
    metadata: Metadata, architecture: str, rope: Rope, factors: Factors
) -> dict[str, Any]:
    """The llama3 scaling that gives these factors, checked to give them. Raises: CheckpointError"""
    where = f"{metadata.path}: {ROPE_FREQS}"
    _check_factors(where, rope, factors, least=1 - SLACK)
    factor = float(str(factors.max()))
    if factor == 1.0:
        return {}
    original = metadata.integer(f"{architecture}.{ORIGINAL_CONTEXT}", 0, lowest=0)
    fitted = _fit(rope, factors.astype(np.float64), factor, original)
    abrupt = {"low_freq_factor": 1.0, "high_freq_factor": 1.0, ORIGINAL: original or 8192}
    for settings in (USUAL, abrupt, fitted):
        if original in (0, settings[ORIGINAL]):
            scaling = {"rope_type": "llama3", "factor": factor} | settings
            if _gives(scaling, rope, factors):
                return scaling
    raise CheckpointError(
        "factors of frequencies that no llama3 scaling gives",
        where=where,
        expected=f"1 for high frequencies, {factor:g} for low ones, a blend between",
        found=shown(factors.tolist()),
    )


def _gives(scaling: dict[str, Any], rope: Rope, factors: Factors) -> bool:
    numbers = {key: float(value) for key, value in scaling.items() if key != "rope_type"}
    if numbers["high_freq_factor"] < numbers["low_freq_factor"]:
        return False
    scaled = replace(rope, kind="llama3", scaling=tuple(sorted(numbers.items())))
    made = frequency_factors(scaled)[ROPE_FREQS]
    return bool(np.allclose(made, factors, rtol=SLACK, atol=0.0))


def _fit(rope: Rope, factors: NDArray[np.float64], factor: float, original: int) -> dict[str, Any]:
    """Settings whose blend runs through the factors that lie between 1 and the largest.

    The blend is a straight line of the frequency: 0 at low / original, 1 at high / original.
    """
    plain = rope.frequencies() / (2 * math.pi)
    blend = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (blend > SLACK) & (blend < 1 - SLACK)
    zero = float(plain[blend <= SLACK].max(initial=0.0))
    one = float(plain[blend >= 1 - SLACK].min(initial=np.inf))
    if between.sum() > 1:
        slope, start = np.polyfit(plain[between], blend[between], 1)
        zero, one = (-start / slope, (1 - start) / slope) if slope > 0 else (0.0, 0.0)
    elif between.any():  # the line through one point is free: a low_freq_factor of 1 is usual
        (place,), (height,) = plain[between], blend[between]
        zero = 1 / original if original and zero <= 1 / original < place else zero
        one = zero + float((place - zero) / height)
    if not 0 < zero < one < np.inf:
        return USUAL
    turns = original or 1 / zero
    low, high = (_tidy(place * turns, SLACK) for place in (zero, one))
    return {"low_freq_factor": low, "high_freq_factor": high, ORIGINAL: round(turns)}


def _tidy(number: float, slack: float) -> float:
    """The short decimal that a person would have written, if it is this number within slack."""
    rounded = float(f"{number:.4g}")
    return rounded if abs(rounded - number) <= slack * abs(number) else float(number)
