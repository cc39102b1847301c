"""Write a model as a quantized Hugging Face directory that other engines read.

In: a checkpoint and an ExportFormat: what its container can hold, its arrays and its settings.
Out: a directory. The linear layers of the blocks keep their codes where it holds them, in a row of
more bits if need be; all other matrices are decoded to float16. Each tensor is reported.
Refuses models that would keep no quantized layer. One matrix is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.architectures.registry import families
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.directory_writer import Part, new_directory, write_model
from crumb.checkpoints.export_report import TensorReport, Told
from crumb.checkpoints.float_parts import decoded_part, plain_part
from crumb.checkpoints.safetensors import ArrayToWrite
from crumb.checkpoints.tensor_map import (
    Entry,
    Matrix,
    Quantized,
    StoredFloats,
    refuse_float_columns,
)
from crumb.errors import SolveError, UsageError
from crumb.formats.catalog import INTEGERS, Format, ZeroKind
from crumb.formats.grid import GroupParameters
from crumb.operations.linear import Linear

HALF = np.dtype(np.float16)
WEIGHT = ".weight"
OUTSIDE = ("embedding", "head")
"""Stages whose matrices engines want as floats."""


@dataclass(frozen=True)
class ExportedLayer:
    """A quantized linear layer as it will be written."""

    module: str
    format: Format
    shape: tuple[int, int]  # (out_features, in_features)
    order: NDArray[np.intp] | None  # (in_features,) the input that each column belongs to


@dataclass(frozen=True)
class ExportFormat:
    """A container: which layers it holds, and how."""

    name: str
    bits: tuple[int, ...]  # of whole numbers
    obstacle: Callable[[ExportedLayer], str]  # why it cannot hold a layer; empty where it can
    sizes: Callable[
        [ExportedLayer], dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    ]  # of its arrays
    arrays: Callable[[ExportedLayer, Matrix], dict[str, NDArray[Any]]]
    settings: Callable[[list[ExportedLayer], list[str], str], dict[str, Any]]
    """What config.json says of its layers, of the modules left alone, and of the head's module."""
    tables: tuple[str, ...] = ()  # rows of the catalog whose codes it holds as they are


def write_quantized(checkpoint: Checkpoint, out: Path, target: ExportFormat, told: Told) -> None:
    """Write the directory; `told` of each tensor as it is written.

    Raises: UsageError, CheckpointError, OutputConflict, DoesNotFit, SolveError.
    """
    inside = {linear.weight for linear in inside_linears(checkpoint.plan)}
    layers: list[ExportedLayer] = []
    parts: list[Part] = []
    obstacles: set[str] = set()
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        layer, why = fitted(spec.name, entry, target, spec.name in inside)
        if spec.name in inside and why:
            obstacles.add(why)
        if layer is not None and isinstance(entry, Quantized):
            layers.append(layer)
            parts += layer_parts(layer, entry, target, told)
        elif isinstance(entry, Quantized) or (isinstance(entry, StoredFloats) and is_wide(entry)):
            parts.append(decoded_part(spec.name, entry, HALF, why, told))
        else:
            parts.append(plain_part(spec.name, entry, told))
    if not layers:
        raise UsageError(
            f"{target.name} would hold no layer of this model in its format",
            where=checkpoint.path,
            expected=f"layers of {', '.join(map(str, target.bits))} bits, neither with a float "
            "minimum nor in super-blocks",
            found="; ".join(sorted(obstacles)),
            do="Quantize the float model with `crumb quantize`, or export to safetensors",
        )
    written = {layer.module for layer in layers}
    modules = [linear.weight.removesuffix(WEIGHT) for linear in inside_linears(checkpoint.plan)]
    head = families()[checkpoint.configuration["model_type"]].tensors["head"]
    settings = target.settings(layers, [name for name in modules if name not in written], head)
    with new_directory(out) as directory:
        configuration = configuration_with(checkpoint.configuration, settings)
        write_model(directory, parts, configuration, checkpoint.files, "pt")


def configuration_with(configuration: Mapping[str, Any], settings: object) -> dict[str, Any]:
    """config.json with quantization settings; engines round scales to the type it names."""
    others = {key: value for key, value in configuration.items() if key != "dtype"}
    return others | {"torch_dtype": HALF.name, "quantization_config": settings}


def inside_linears(plan: Plan) -> Iterator[Linear]:
    """The linear layers of the blocks."""
    for stage in plan.stages:
        if stage.name not in OUTSIDE:
            for operation in stage.operations:
                if isinstance(operation, Linear):
                    yield operation


def is_wide(entry: StoredFloats) -> bool:
    """Whether a matrix is of f32 only because its container's format is none of ours."""
    return not entry.lies_as_floats and entry.dtype == np.float32 and len(entry.shape) == 2


def fitted(
    name: str, entry: Entry, target: ExportFormat, inside: bool
) -> tuple[ExportedLayer | None, str]:
    """A layer in the target's format, or why there is none."""
    if not isinstance(entry, Quantized):
        return None, f"{target.name} has no format for {entry.source}"
    if not inside:
        return None, "embedding and head are floats"
    refuse_float_columns(name, entry, target.name)
    held = entry.format.row.name in target.tables
    format = entry.format if held else integer_format(entry.format, target.bits)
    if format is None:
        return None, f"{target.name} has no format for {entry.format.name}"
    layer = ExportedLayer(name.removesuffix(WEIGHT), format, entry.shape, entry.order)
    why = target.obstacle(layer)
    return (None, why) if why else (layer, "")


def integer_format(format: Format, bits: tuple[int, ...]) -> Format | None:
    """A format of whole numbers, of these bits, that holds the same weights; None without one.

    A table of int8 values is 8-bit codes: value + 128.
    """
    if format.row.super_block is not None or format.zero is ZeroKind.MINIMUM:
        return None
    needed_bits = format.bits if format.row.table is None else 8
    rows = [row for row in INTEGERS.values() if row.bits in bits and row.bits >= needed_bits]
    if not rows:
        return None
    return Format(min(rows, key=lambda row: row.bits), format.group_size, format.zero)


def integer_matrix(matrix: Matrix, source: Format, target: Format) -> Matrix:
    """Codes and parameters in the integer_format."""
    codes, parameters = matrix
    if source.row.table is not None:
        levels = np.array(source.row.table, np.int16) + target.fixed_zero_point
        return levels.astype(np.uint8)[codes], parameters
    if source.zero is ZeroKind.FIXED:  # a row of more bits has its zero higher
        codes = codes + np.uint8(target.fixed_zero_point - source.fixed_zero_point)
    return codes, parameters


def layer_parts(
    layer: ExportedLayer, entry: Quantized, target: ExportFormat, told: Told
) -> list[Part]:
    """The arrays of one layer: read and converted once, when the first is written."""

    @lru_cache(maxsize=1)
    def arrays() -> dict[str, NDArray[Any]]:
        name = layer.module + WEIGHT
        matrix = entry.read_codes(slice(0, entry.shape[0]))
        if layer.format != entry.format:
            matrix = integer_matrix(matrix, entry.format, layer.format)
        if not np.isfinite(matrix[1].scale).all():
            raise SolveError(
                "a scale is not finite",
                where=name,
                expected="finite numbers",
                do="The model is damaged: copy or download it again",
            )
        made = target.arrays(layer, matrix)
        widened = layer.format.bits != entry.format.bits
        note = f"in codes of {layer.format.bits} bits" if widened else ""
        described = f"{target.name} {layer.format.name}"
        told(TensorReport(name, entry.source, described, exact=True, note=note))
        return made

    def part(suffix: str, last: bool) -> ArrayToWrite:
        def read() -> NDArray[Any]:
            array = arrays()[suffix]
            if last:
                arrays.cache_clear()
            return array

        shape, dtype = sizes[suffix]
        return ArrayToWrite(dtype, shape, read)

    sizes = target.sizes(layer)
    last = list(sizes)[-1]
    return [Part(f"{layer.module}.{suffix}", part(suffix, suffix == last)) for suffix in sizes]


def stored_zero_points(layer: ExportedLayer, parameters: GroupParameters) -> NDArray[np.uint8]:
    """The zero point of each row and group, also where the format fixes it."""
    return parameters.offset(layer.format).astype(np.uint8)
