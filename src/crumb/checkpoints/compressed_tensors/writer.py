"""Write compressed-tensors files, formats "pack-quantized" and "mxfp4-pack-quantized".

In: a checkpoint. Out: a directory; layers of one format are one group of config_groups.
Codes and scales stay as they are; embedding, head and what does not fit become float16.
Refuses zero points beyond the codes, and models without a layer that fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.compressed_tensors.four_bit_floats import MXFP4
from crumb.checkpoints.compressed_tensors.reader import FORMAT, LINEAR, METHOD, MIXED
from crumb.checkpoints.export_report import TensorReport
from crumb.checkpoints.gptq.writer import HALF, WORD, pack_words
from crumb.checkpoints.grouped_codes import words
from crumb.checkpoints.mxfp4.blocks import exponents_of, pack_pairs
from crumb.checkpoints.quantized_writer import (
    ExportedLayer,
    ExportFormat,
    stored_zero_points,
    write_quantized,
)
from crumb.checkpoints.tensor_map import Matrix
from crumb.errors import UsageError
from crumb.formats.catalog import INTEGERS, ROW, Format, ZeroKind

BITS = tuple(row.bits for row in INTEGERS.values())
SIZE = np.dtype("<i8")
BYTE = np.dtype("u1")
FLOAT_ROWS = {"mxfp4": MXFP4}
"""Rows of 4-bit floats, and the format that they lie in."""


def write_compressed_tensors(
    checkpoint: Checkpoint, out: Path, told: Callable[[TensorReport], None] = lambda report: None
) -> None:
    """Write a compressed-tensors directory; `told` of each tensor as it is written.

    Raises: UsageError, CheckpointError, OutputConflict, DoesNotFit, SolveError.
    """
    write_quantized(checkpoint, out, EXPORT_FORMAT, told)


def _obstacle(layer: ExportedLayer) -> str:
    if layer.order is not None:
        return f"{METHOD} has no other order of inputs"
    if layer.shape[1] % layer.format.group_width(layer.shape[1]):
        return f"{METHOD} needs whole groups"
    return ""


def _sizes(layer: ExportedLayer) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    rows, columns = layer.shape
    bits, groups = layer.format.bits, layer.format.groups(columns)
    if layer.format.row.name in FLOAT_ROWS:
        return {
            "weight_packed": ((rows, columns // 2), BYTE),
            "weight_scale": ((rows, groups), BYTE),
        }
    sizes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "weight_packed": ((rows, words(columns, bits)), WORD),
        "weight_scale": ((rows, groups), HALF),
        "weight_shape": ((2,), SIZE),
    }
    if layer.format.zero is ZeroKind.VARIABLE:
        sizes["weight_zero_point"] = (words(rows, bits), groups), WORD
    return sizes


def compressed_arrays(layer: ExportedLayer, matrix: Matrix) -> dict[str, NDArray[Any]]:
    """The arrays of one layer.

    Raises: UsageError for a zero point, or a scale of 4-bit floats, that cannot be stored.
    """
    codes, parameters = matrix
    bits = layer.format.bits
    if layer.format.row.name in FLOAT_ROWS:
        scale = exponents_of(parameters, layer.module)
        return {"weight_packed": pack_pairs(codes), "weight_scale": scale}
    arrays: dict[str, NDArray[Any]] = {
        "weight_packed": pack_words(codes, bits),
        "weight_scale": parameters.scale,
        "weight_shape": np.array(layer.shape, SIZE),
    }
    if layer.format.zero is ZeroKind.VARIABLE:
        zeros = stored_zero_points(layer, parameters)
        highest = layer.format.row.largest_code
        if zeros.max() > highest:
            raise UsageError(
                "a zero point is beyond the codes",
                where=layer.module,
                expected=f"0 to {highest}",
                found=int(zeros.max()),
            )
        arrays["weight_zero_point"] = pack_words(zeros.T, bits).T
    return arrays


def compressed_settings(layers: list[ExportedLayer], alone: list[str], head: str) -> dict[str, Any]:
    """What config.json says: the format of most layers is that of the class, others by name."""
    most = Counter(layer.format for layer in layers).most_common()
    kinds = {_kind(format) for format, _ in most}
    groups: dict[str, Any] = {}
    for place, (format, _) in enumerate(most):
        names = [layer.module for layer in layers if layer.format == format]
        groups[f"group_{place}"] = {
            "targets": names if place else [LINEAR],
            "weights": _weights(format),
            "input_activations": None,
            "output_activations": None,
        } | ({} if kinds == {FORMAT} else {"format": _kind(format)})
    return {
        "quant_method": METHOD,
        "format": kinds.pop() if len(kinds) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*alone, head],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _kind(format: Format) -> str:
    return FLOAT_ROWS.get(format.row.name, FORMAT)


def _weights(format: Format) -> dict[str, Any]:
    whole = format.group_size == ROW
    floats = {"type": "float", "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    return {
        "num_bits": format.bits,
        "type": "int",
        "symmetric": format.zero is ZeroKind.FIXED,
        "strategy": "channel" if whole else "group",
        "group_size": None if whole else format.group_size,
        "dynamic": False,
    } | (floats if format.row.name in FLOAT_ROWS else {})


EXPORT_FORMAT = ExportFormat(
    name=METHOD,
    bits=BITS,
    obstacle=_obstacle,
    sizes=_sizes,
    arrays=compressed_arrays,
    settings=compressed_settings,
    tables=tuple(FLOAT_ROWS),
)
