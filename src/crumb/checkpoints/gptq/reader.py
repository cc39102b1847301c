"""GPTQ files of the Hugging Face kind, quant_method "gptq", versions 1 and 2.

In: a directory's arrays and its quantization_config. Out: entries. A module has qweight, codes
packed along its inputs; scales and qzeros for each group; g_idx, the group of each input.
Version 1 stores each zero point less one. `dynamic` has settings of single modules.
Refuses other bits, packings and formats, and arrays that do not follow from the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import as_integer, read_flag, refuse
from crumb.checkpoints.gptq.module_patterns import Rules
from crumb.checkpoints.grouped_codes import (
    SCALES,
    SETTINGS,
    WORD_BITS,
    Codes,
    GroupedMatrix,
    group_indices,
    group_shape,
    needed,
    settings_of,
    unpack_words,
    with_matrices,
    words,
)
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory
from crumb.errors import CheckpointError

METHOD = "gptq"
LEGACY_FILE = "quantize_config.json"
"""Where the settings lie when config.json does not have them."""

BITS = (2, 3, 4, 8)
MISSING_FROM_ZERO = {"gptq": 1, "gptq_v2": 0}
"""checkpoint_format -> what is added to a stored zero point."""

ARRAYS = ("qweight", "qzeros", "scales", "g_idx")
POSITIVE, NEGATIVE = "+:", "-:"


@dataclass(frozen=True)
class GptqSettings:
    """What decides the shapes of a module's arrays."""

    bits: int
    group_size: int  # -1: the whole input


def read_gptq(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of a GPTQ directory. Raises: CheckpointError."""
    configuration = settings_of(directory)
    missing = _missing_from_zero(configuration)
    settings = _settings(configuration, None)
    rules = _rules(configuration, settings)

    def matrix(module: str) -> Entry:
        chosen = rules.find(module)
        if isinstance(chosen, str):
            raise CheckpointError(
                "a quantized layer is one that the settings leave alone",
                where=f"{directory.path}: {module}",
                found=f"{chosen[:80]} in {SETTINGS}.dynamic",
            )
        return _matrix(directory, module, chosen or settings, missing).entry()

    return with_matrices(directory.arrays, ARRAYS, matrix)


def _missing_from_zero(settings: Mapping[str, Any]) -> int:
    """What is to be added to a stored zero point. Raises: CheckpointError."""
    packing = settings.get("pack_dtype") or "int32"
    if packing not in ("int32", "torch.int32"):
        raise refuse(f"{SETTINGS}.pack_dtype", "int32", packing)
    format = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if not isinstance(format, str) or format not in MISSING_FROM_ZERO:
        raise refuse(f"{SETTINGS}.checkpoint_format", " or ".join(MISSING_FROM_ZERO), format)
    if settings.get("is_marlin_format"):
        raise refuse(f"{SETTINGS}.is_marlin_format", "false", settings["is_marlin_format"])
    return MISSING_FROM_ZERO[format]


def _settings(settings: Mapping[str, Any], base: GptqSettings | None, at: str = "") -> GptqSettings:
    """Settings as given, the others those of base. Raises: CheckpointError."""
    for flag in ("desc_act", "sym", "lm_head"):
        read_flag(
            {key: settings[key] for key in (flag,) if settings.get(key) is not None}, flag, False
        )
    inherited = {} if base is None else vars(base)
    bits = settings.get("bits", inherited.get("bits"))
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS:
        raise refuse(f"{SETTINGS}.{at}bits", f"one of {', '.join(map(str, BITS))}", bits)
    size = as_integer(
        settings.get("group_size", inherited.get("group_size", 128)),
        f"{SETTINGS}.{at}group_size",
        lowest=-1,
    )
    if size == 0:
        raise refuse(f"{SETTINGS}.{at}group_size", "-1, or at least 1", size)
    return GptqSettings(bits, size)


def _rules(settings: Mapping[str, Any], base: GptqSettings) -> Rules[GptqSettings | str]:
    """Settings of single modules; the pattern itself where it says to leave them alone."""
    dynamic = settings.get("dynamic") or {}
    key = f"{SETTINGS}.dynamic"
    if not isinstance(dynamic, dict):
        raise refuse(key, "an object", dynamic)
    patterns: list[tuple[str, GptqSettings | str]] = []
    for pattern, overrides in dynamic.items():
        bare = pattern[2:] if pattern[:2] in (POSITIVE, NEGATIVE) else pattern
        if pattern.startswith(NEGATIVE):
            patterns.append((bare, pattern))
            continue
        if not isinstance(overrides, dict):
            raise refuse(f"{key}.{pattern[:80]}", "an object", overrides)
        patterns.append((bare, _settings(overrides, base, "dynamic: ")))
    return Rules.of(patterns, f"config.json: {key}")


def _matrix(
    directory: QuantizedDirectory, module: str, settings: GptqSettings, missing_from_zero: int
) -> GroupedMatrix:
    """One module's matrix, its arrays checked. Raises: CheckpointError."""
    arrays, bits = directory.arrays, settings.bits
    packed = needed(arrays, f"{module}.qweight", (None, None), ("int32",))
    out_features = packed.shape[1]
    index = arrays.get(f"{module}.g_idx")
    if index is None:
        in_features = packed.shape[0] * WORD_BITS // bits
    else:
        index = needed(arrays, f"{module}.g_idx", (None,), ("int32", "int64"))
        in_features = index.shape[0]
    packed = needed(arrays, f"{module}.qweight", (words(in_features, bits), None), ("int32",))
    width, groups = group_shape(settings.group_size, in_features)
    scales = needed(arrays, f"{module}.scales", (groups, out_features), SCALES)
    zeros = needed(arrays, f"{module}.qzeros", (groups, words(out_features, bits)), ("int32",))
    where = f"{directory.path}: {module}"
    parts = GptqArrays(packed, zeros, scales, bits, in_features, missing_from_zero)
    return GroupedMatrix(
        where,
        source=f"GPTQ of {bits} bits",
        shape=(out_features, in_features),
        bits=bits,
        group_width=width,
        size_bytes=sum(each.size_bytes for each in (packed, zeros, scales, index) if each),
        codes=parts.codes,
        scales=parts.scale,
        zero_points=parts.zero_points,
        group_of_column=None if index is None else group_indices(index, groups, width, where),
    )


@dataclass(frozen=True)
class GptqArrays:
    """The arrays of one module: inputs or groups are their rows, outputs their columns."""

    qweight: StoredArray
    qzeros: StoredArray
    scales: StoredArray
    bits: int
    in_features: int
    missing_from_zero: int

    def codes(self, rows: slice) -> Codes:
        """Shapes: -> (rows, in_features)."""
        return unpack_words(self.qweight.read_columns(rows).T, self.bits, self.in_features)

    def scale(self, rows: slice) -> NDArray[Any]:
        """Shapes: -> (rows, groups)."""
        return self.scales.read_columns(rows).T

    def zero_points(self, rows: slice) -> Codes:
        """Shapes: -> (rows, groups)."""
        points = unpack_words(self.qzeros.read(), self.bits, self.scales.shape[1])
        mask = np.uint8((1 << self.bits) - 1)
        return (points[:, rows].T + np.uint8(self.missing_from_zero)) & mask
