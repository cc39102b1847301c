"""compressed-tensors files, quant_method "compressed-tensors": packed codes, bytes, small floats.

In: a directory's arrays and its quantization_config. Out: entries. A packed module has
weight_packed, codes packed along its inputs, weight_scale for each row and group, weight_shape;
zero points packed along the rows where it is not symmetric. Of int-quantized and float-quantized
ones weight itself holds the codes or 8-bit floats. 4-bit floats are read by four_bit_floats.py.
Groups of modules have settings of their own. Settings of activations are passed over.
Refuses other formats, transforms, and arrays that do not follow from the settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import LIMIT, as_integer, read_flag, refuse
from crumb.checkpoints.compressed_tensors.four_bit_floats import FLOAT_FORMATS, check_weights
from crumb.checkpoints.gptq.module_patterns import Rules
from crumb.checkpoints.grouped_codes import (
    SCALES,
    SETTINGS,
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
from crumb.checkpoints.scaled_floats import EIGHT_BIT, Block, scaled_matrix
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory, StoredCodes, StoredFloats
from crumb.errors import CheckpointError

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
"""Formats whose weights lie in arrays of 8 bits each."""

MIXED = "mixed-precision"
"""What the format of the whole is called where groups name theirs."""

SIXTEEN_BITS = "Take the model's 16-bit release and quantize it with `crumb quantize`"

CHANGES: tuple[tuple[str, str, object], ...] = (
    ("transform_config", "config_groups", {}),
    ("sparsity_config", "format", "dense"),
)
"""Settings that would change the weights: unless they have this key with this value."""

LINEAR = "Linear"
"""The class that a target may name: every packed module is of it."""

PATTERN = "re:"
ARRAYS = (
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "input_global_scale",
)
"""Of a packed module; what is said of its inputs is passed over."""

STRATEGIES = ("group", "channel", "tensor", "block")
WHOLE_INPUT = -1


@dataclass(frozen=True)
class Scheme:
    """What decides the shapes of a module's arrays."""

    bits: int
    group_size: int  # -1: the whole input
    symmetric: bool
    floats: bool = False
    block: Block | None = None  # rows and columns that share a scale
    format: str = FORMAT  # what the file calls how it lies


def read_compressed_tensors(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of a compressed-tensors directory. Raises: CheckpointError."""
    settings = settings_of(directory)
    _check_format(settings.get("format"), f"{SETTINGS}.format", MIXED)
    for key, inside, harmless in CHANGES:
        setting = settings.get(key)
        if setting and (not isinstance(setting, dict) or setting.get(inside, {}) != harmless):
            raise refuse(f"{SETTINGS}.{key}", "none", setting)
    targets = Targets.of(settings)

    def scheme_of(module: str) -> Scheme:
        scheme = targets.find(module)
        if scheme is None:
            raise CheckpointError(
                "a quantized layer is no target of the settings, or one that they ignore",
                where=f"{directory.path}: {module}",
            )
        return scheme

    entries = with_matrices(
        directory.arrays, ARRAYS, lambda module: _packed(directory, module, scheme_of(module))
    )
    for name, entry in list(entries.items()):
        module, _, kind = name.rpartition(".")
        scales = entries.get(f"{module}.weight_scale")
        if kind == "weight" and isinstance(entry, StoredArray) and isinstance(scales, StoredArray):
            entries[name] = _plain_matrix(entry, scales, scheme_of(module), f"{entry.path}: {name}")
            del entries[f"{module}.weight_scale"]
    return entries


def _check_format(format: object, key: str, *further: str) -> None:
    """Raises: CheckpointError."""
    readable = (FORMAT, *PLAIN, *FLOAT_FORMATS)
    if format not in (*readable, *further):
        error = refuse(key, " or ".join(readable), format)
        raise CheckpointError(
            error.what,
            where=error.where,
            expected=error.expected,
            found=error.found,
            do=SIXTEEN_BITS,
        )


def _plain_matrix(
    weight: StoredArray, scales: StoredArray, scheme: Scheme, where: str
) -> StoredFloats | StoredCodes:
    """A matrix of 8-bit floats, or of bytes. Raises: CheckpointError."""
    types = EIGHT_BIT if scheme.floats else ("int8",)
    if weight.dtype.name not in types or len(weight.shape) != 2 or not scheme.symmetric:
        raise CheckpointError(
            "a matrix that does not follow from its settings",
            where=where,
            expected=f"{' or '.join(types)} [out_features, in_features], symmetric",
            found=f"{weight.dtype.name} {list(weight.shape)}",
        )
    if scheme.floats:
        return scaled_matrix(where, weight, scales, scheme.block)
    rows, columns = weight.shape
    if scales.dtype.name not in SCALES or scales.shape not in ((rows, 1), (1,), ()):
        raise CheckpointError(
            "scales that do not fit their matrix",
            where=where,
            expected=f"{' or '.join(SCALES)} [{rows}, 1]",
            found=f"{scales.dtype.name} {list(scales.shape)}",
        )
    parts = ByteArrays(weight, scales)
    return GroupedMatrix(
        where,
        source="compressed-tensors of int8",
        shape=(rows, columns),
        bits=8,
        group_width=columns,
        size_bytes=weight.size_bytes + scales.size_bytes,
        codes=parts.codes,
        scales=parts.scale,
    ).entry()


@dataclass(frozen=True)
class ByteArrays:
    """The arrays of one module of signed bytes."""

    weight: StoredArray
    scales: StoredArray  # one for all, or one a row

    def codes(self, rows: slice) -> Codes:
        """Shapes: -> (rows, in_features)."""
        return self.weight.read(rows).view(np.uint8) ^ np.uint8(0x80)

    def scale(self, rows: slice) -> NDArray[Any]:
        """Shapes: -> (rows, 1)."""
        return np.broadcast_to(self.scales.read().reshape(-1, 1), (self.weight.shape[0], 1))[rows]


@dataclass(frozen=True)
class Targets:
    """Which modules have which scheme. A name goes before a pattern, a pattern before a class."""

    ignored: Rules[bool]
    named: Mapping[str, Scheme]
    patterns: Rules[Scheme]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Targets:
        """Raises: CheckpointError."""
        groups = settings.get("config_groups")
        if not isinstance(groups, dict):
            raise refuse(f"{SETTINGS}.config_groups", "an object", groups)
        schemes: dict[str, Scheme] = {}
        for name, group in groups.items():
            key = f"{SETTINGS}.config_groups.{name[:40]}"
            scheme = _scheme(group, key, settings.get("format"))
            schemes |= dict.fromkeys(_names(group.get("targets"), f"{key}.targets"), scheme)
        ignored = _names(settings.get("ignore") or [], f"{SETTINGS}.ignore")
        return cls(
            Rules.of(((_as_pattern(name), True) for name in ignored), "config.json: ignore"),
            {name: scheme for name, scheme in schemes.items() if not name.startswith(PATTERN)},
            Rules.of(
                (
                    (name.removeprefix(PATTERN), scheme)
                    for name, scheme in sorted(schemes.items())
                    if name.startswith(PATTERN)
                ),
                "config.json: targets",
            ),
        )

    def find(self, module: str) -> Scheme | None:
        """Raises: CheckpointError."""
        if self.ignored.find(module):
            return None
        return self.named.get(module) or self.patterns.find(module) or self.named.get(LINEAR)


def _as_pattern(name: str) -> str:
    return name.removeprefix(PATTERN) if name.startswith(PATTERN) else f"{re.escape(name)}$"


def _names(value: object, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise refuse(key, "a list of names", value)
    return value


def _scheme(group: object, key: str, format: object) -> Scheme:
    """The scheme of one group of modules; `format` is the whole's. Raises: CheckpointError."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(weights, dict):
        raise refuse(key, "an object with targets and weights", group)
    format = group.get("format") or format
    _check_format(format, f"{key}.format")
    if format in FLOAT_FORMATS:
        check_weights(weights, f"{key}.weights", format)
        return Scheme(4, FLOAT_FORMATS[format].group_size, True, True, format=format)
    bits = as_integer(weights.get("num_bits"), f"{key}.weights.num_bits", 8)
    kind = weights.get("type") or "int"
    if kind not in ("int", *(("float",) if format != FORMAT and bits == 8 else ())):
        raise refuse(f"{key}.weights.type", "int, or float of 8 bits", kind)
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    if strategy not in STRATEGIES:
        raise refuse(f"{key}.weights.strategy", " or ".join(STRATEGIES), strategy)
    size = WHOLE_INPUT
    if strategy == "group":
        size = as_integer(weights.get("group_size"), f"{key}.weights.group_size", LIMIT)
    block = weights.get("block_structure") if strategy == "block" else None
    if strategy == "block" and (not isinstance(block, list) or len(block) != 2):
        raise refuse(f"{key}.weights.block_structure", "two numbers", block)
    if format == FORMAT and strategy not in ("group", "channel"):
        raise refuse(f"{key}.weights.strategy", "group or channel", strategy)
    return Scheme(
        bits,
        size,
        read_flag(weights, "symmetric", True),
        kind == "float",
        None if block is None else _block(block, f"{key}.weights.block_structure"),
    )


def _block(sizes: list[Any], key: str) -> Block:
    return as_integer(sizes[0], key), as_integer(sizes[1], key)


def _packed(directory: QuantizedDirectory, module: str, scheme: Scheme) -> Entry:
    """One module's matrix. Raises: CheckpointError."""
    if scheme.format in FLOAT_FORMATS:
        return FLOAT_FORMATS[scheme.format].entry(directory, module)
    return _matrix(directory, module, scheme).entry()


def _matrix(directory: QuantizedDirectory, module: str, scheme: Scheme) -> GroupedMatrix:
    """One module's matrix, its arrays checked. Raises: CheckpointError."""
    arrays, bits = directory.arrays, scheme.bits
    where = f"{directory.path}: {module}"
    shape = needed(arrays, f"{module}.weight_shape", (2,), ("int64", "int32")).read()
    out_features, in_features = int(shape[0]), int(shape[1])
    if not (0 < out_features <= LIMIT and 0 < in_features <= LIMIT):
        raise CheckpointError("impossible shape", where=where, found=shape.tolist())
    packed = needed(
        arrays, f"{module}.weight_packed", (out_features, words(in_features, bits)), ("int32",)
    )
    width, groups = group_shape(scheme.group_size, in_features)
    scales = needed(arrays, f"{module}.weight_scale", (out_features, groups), SCALES)
    zeros = None if scheme.symmetric else _zeros(arrays, module, (out_features, groups), bits)
    index = arrays.get(f"{module}.weight_g_idx")
    if index is not None:
        index = needed(arrays, f"{module}.weight_g_idx", (in_features,), ("int32", "int64"))
    parts = PackedArrays(packed, zeros, scales, bits, in_features)
    return GroupedMatrix(
        where,
        source=f"compressed-tensors of {bits} bits",
        shape=(out_features, in_features),
        bits=bits,
        group_width=width,
        size_bytes=sum(each.size_bytes for each in (packed, zeros, scales, index) if each),
        codes=parts.codes,
        scales=parts.scale,
        zero_points=None if zeros is None else parts.zero_points,
        group_of_column=None if index is None else group_indices(index, groups, width, where),
    )


def _zeros(
    arrays: Mapping[str, StoredArray], module: str, groups: tuple[int, int], bits: int
) -> StoredArray:
    """Zero points, packed along the rows; earlier versions wrote them as they are, in int8."""
    name = f"{module}.weight_zero_point"
    zeros = arrays.get(name)
    if zeros is not None and zeros.dtype == np.int8:
        return needed(arrays, name, groups, ("int8",))
    return needed(arrays, name, (words(groups[0], bits), groups[1]), ("int32",))


@dataclass(frozen=True)
class PackedArrays:
    """The arrays of one module: outputs are their rows, packed or not."""

    packed: StoredArray
    zeros: StoredArray | None
    scales: StoredArray
    bits: int
    in_features: int

    def codes(self, rows: slice) -> Codes:
        """Shapes: -> (rows, in_features)."""
        return unpack_words(self.packed.read(rows), self.bits, self.in_features)

    def scale(self, rows: slice) -> NDArray[Any]:
        """Shapes: -> (rows, groups)."""
        return self.scales.read(rows)

    def zero_points(self, rows: slice) -> Codes:
        """Shapes: -> (rows, groups)."""
        assert self.zeros is not None, "asked of asymmetric matrices only"
        if self.zeros.dtype == np.int8:
            signed = self.zeros.read(rows).astype(np.int16) + (1 << (self.bits - 1))
            return signed.astype(np.uint8)
        codes = unpack_words(self.zeros.read().T, self.bits, self.scales.shape[0])
        return codes.T[rows]
