"""Write GPTQ files of the Hugging Face kind, version 1 or 2.

In: a checkpoint. Out: a directory; layers that differ from most have settings in `dynamic`.
Codes and scales stay as they are; embedding, head and what GPTQ does not hold become float16.
Refuses zero points that the version cannot store, and models without a layer that fits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb import __version__
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.export_report import TensorReport
from crumb.checkpoints.gptq.reader import BITS, METHOD, MISSING_FROM_ZERO, NEGATIVE, POSITIVE
from crumb.checkpoints.grouped_codes import WORD_BITS, words
from crumb.checkpoints.quantized_writer import (
    ExportedLayer,
    ExportFormat,
    stored_zero_points,
    write_quantized,
)
from crumb.checkpoints.tensor_map import Matrix
from crumb.errors import UsageError
from crumb.formats.catalog import ROW, ZeroKind
from crumb.formats.grid import GroupParameters, group_of_column
from crumb.kernels.bit_stream import pack

VERSIONS = tuple(MISSING_FROM_ZERO)
"""What checkpoint_format calls the versions."""

WORD, HALF = np.dtype("<i4"), np.dtype("<f2")
MULTIPLE = 32
"""Inputs and outputs come in multiples of this: whole words whatever the bits."""


def write_gptq(
    checkpoint: Checkpoint,
    out: Path,
    version: str = "gptq",
    told: Callable[[TensorReport], None] = lambda report: None,
) -> None:
    """Write a GPTQ directory; `told` of each tensor as it is written.

    Raises: UsageError, CheckpointError, OutputConflict, DoesNotFit, SolveError.
    """
    write_quantized(checkpoint, out, gptq_format(version), told)


def gptq_format(version: str) -> ExportFormat:
    """GPTQ in one of its versions. Raises: UsageError."""
    if version not in VERSIONS:
        raise UsageError(
            "no such version of GPTQ files", expected=" or ".join(VERSIONS), found=version
        )
    missing = MISSING_FROM_ZERO[version]
    return ExportFormat(
        name=METHOD,
        bits=BITS,
        obstacle=_obstacle,
        sizes=_sizes,
        arrays=partial(gptq_arrays, missing_from_zero=missing),
        settings=partial(gptq_settings, version=version),
    )


def _obstacle(layer: ExportedLayer) -> str:
    ragged = [size for size in layer.shape if size % MULTIPLE]
    return f"{METHOD} needs inputs and outputs in multiples of {MULTIPLE}" if ragged else ""


def _sizes(layer: ExportedLayer) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    rows, columns = layer.shape
    bits, groups = layer.format.bits, layer.format.groups(columns)
    return {
        "qweight": ((words(columns, bits), rows), WORD),
        "qzeros": ((groups, words(rows, bits)), WORD),
        "scales": ((groups, rows), HALF),
        "g_idx": ((columns,), WORD),
    }


def gptq_arrays(
    layer: ExportedLayer, matrix: Matrix, missing_from_zero: int
) -> dict[str, NDArray[Any]]:
    """The arrays of one layer. Raises: UsageError for a zero point that cannot be stored."""
    codes, parameters = matrix
    group = group_of_column(layer.format, layer.shape[1])
    if layer.order is not None:
        back = np.argsort(layer.order)
        codes, group = codes[:, back], group[back]
    zeros = _checked_zeros(layer, parameters, missing_from_zero) - np.uint8(missing_from_zero)
    bits = layer.format.bits
    return {
        "qweight": pack_words(codes, bits).T,
        "qzeros": pack_words(zeros.T, bits),
        "scales": parameters.scale.T,
        "g_idx": group.astype(WORD),
    }


def pack_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Each row as a dense stream of 32-bit words. Shapes: (rows, count) -> (rows, words)."""
    stream = pack(np.ascontiguousarray(codes), bits)
    padded = np.zeros((len(codes), 4 * words(codes.shape[1], bits)), np.uint8)
    padded[:, : stream.shape[1]] = stream
    return padded.view(WORD)


def _checked_zeros(
    layer: ExportedLayer, parameters: GroupParameters, lowest: int
) -> NDArray[np.uint8]:
    zeros = stored_zero_points(layer, parameters)
    highest = layer.format.row.largest_code
    if zeros.min() < lowest or zeros.max() > highest:
        raise UsageError(
            "a zero point does not fit this version of GPTQ files",
            where=layer.module,
            expected=f"{lowest} to {highest}",
            found=int(zeros.min() if zeros.min() < lowest else zeros.max()),
            do="Quantize with `--target gptq`, or write version 2 with `--to gptq_v2`",
        )
    return zeros


Settings = tuple[int, int, bool]
"""bits, group_size (-1: the whole input), sym: what `dynamic` may say of a layer."""


def _settings_of(layer: ExportedLayer) -> Settings:
    size = -1 if layer.format.group_size == ROW else layer.format.group_size
    return layer.format.bits, size, layer.format.zero is ZeroKind.FIXED


def _named(settings: Settings) -> dict[str, Any]:
    return dict(zip(("bits", "group_size", "sym"), settings, strict=True))


def gptq_settings(
    layers: list[ExportedLayer], alone: list[str], head: str, version: str
) -> dict[str, Any]:
    """What config.json says: the settings of most layers, and those of the others by name.

    The head needs no name: lm_head speaks of it.
    """
    del head
    most = Counter(map(_settings_of, layers)).most_common(1)[0][0]
    dynamic: dict[str, dict[str, Any]] = {}
    for layer in layers:
        if _settings_of(layer) != most:
            dynamic[f"{POSITIVE}{_exactly(layer.module)}"] = _named(_settings_of(layer))
    dynamic |= {f"{NEGATIVE}{_exactly(module)}": {} for module in alone}
    return {
        "quant_method": METHOD,
        **_named(most),
        "desc_act": any(layer.order is not None for layer in layers),
        "lm_head": False,
        "checkpoint_format": version,
        "pack_dtype": f"int{WORD_BITS}",
        **({"dynamic": dynamic} if dynamic else {}),
        "meta": {"quantizer": [f"crumb:{__version__}"]},
    }


def _exactly(module: str) -> str:
    """A pattern of one name."""
    return f"{re.escape(module)}$"
