"""Directories of 8-bit floats and in MLX's layout, written the plain way, from their layouts alone.

In: settings, or bits and groups. Out: a tiny model, and the weights that it stands for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from quantized_files import to_words
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb.checkpoints.safetensors import ArrayToWrite, write_file

Arrays = dict[str, NDArray[Any]]
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


def write_eight(
    path: Path,
    settings: dict[str, Any],
    scale_name: str,
    block: tuple[int, int] | None,
    scale_type: Any,
    dtype: np.dtype[Any] = E4M3,
) -> dict[str, NDArray[np.float64]]:
    """A tiny model in 8 bits; returns the weights that it stands for."""
    write_checkpoint(path, configuration={"quantization_config": settings})
    arrays: Arrays = {}
    weights: dict[str, NDArray[np.float64]] = {}
    for name, values in make_tensors().items():
        arrays[name] = values.astype(np.float16)
        weights[name] = arrays[name].astype(np.float64)
        if values.ndim != 2 or "embed" in name:
            continue
        rows, columns = values.shape
        height, width = (rows, columns) if block is None else (block[0], block[1] or columns)
        shape = -(-rows // height), -(-columns // width)
        drawn = np.random.default_rng(len(arrays)).uniform(0.001, 0.01, shape)
        scales = drawn.astype(np.float16 if dtype == np.int8 else scale_type)
        spread = np.repeat(np.repeat(scales.astype(np.float64), height, 0), width, 1)
        spread = spread[:rows, :columns]
        stored = np.clip(values / spread, -127, 127)
        arrays[name] = (np.rint(stored) if dtype == np.int8 else stored).astype(dtype)
        arrays[name.replace("weight", scale_name)] = scales[0, 0] if block is None else scales
        weights[name] = arrays[name].astype(np.float64) * spread
    write_file(
        path / "model.safetensors",
        {
            name: ArrayToWrite(array.dtype, array.shape, lambda array=array: array)
            for name, array in arrays.items()
        },
        {},
    )
    return weights


def write_mlx(
    path: Path, bits: int, group: int, dtype: Any = np.float16
) -> dict[str, NDArray[np.float32]]:
    """A tiny model with every matrix quantized; returns the weights that it stands for."""
    said = {"group_size": group, "bits": bits}
    write_checkpoint(path, configuration={"quantization": said, "quantization_config": said})
    arrays: dict[str, NDArray[Any]] = {}
    weights: dict[str, NDArray[np.float32]] = {}
    generator = np.random.default_rng(bits)
    for name, values in make_tensors(feed_forward=128).items():
        if values.ndim != 2:
            arrays[name] = values.astype(np.float16)
            continue
        codes = generator.integers(0, 2**bits, values.shape)
        shape = len(values), values.shape[1] // group
        scales = generator.normal(0, 0.02, shape).astype(dtype)
        biases = generator.normal(0, 0.1, shape).astype(dtype)
        arrays[name] = to_words(codes, bits).view(np.uint32)
        arrays[name.replace("weight", "scales")] = scales
        arrays[name.replace("weight", "biases")] = biases
        wide = [np.repeat(each.astype(np.float32), group, axis=1) for each in (scales, biases)]
        weights[name] = codes.astype(np.float32) * wide[0] + wide[1]
    write_file(
        path / "model.safetensors",
        {
            name: ArrayToWrite(array.dtype, array.shape, lambda array=array: array)
            for name, array in arrays.items()
        },
        {"format": "mlx"},
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    return weights
