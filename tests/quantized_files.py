"""Quantized Hugging Face files written and decoded the plain way, from their layouts alone.

In: random codes, scales and zero points. Out: the arrays of a GPTQ, AWQ or compressed-tensors
module, the weights they stand for, and a tiny model whose blocks are stored that way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tiny_checkpoint import make_tensors, write_checkpoint, write_safetensors

from crumb.checkpoints.huggingface.reader import open_directory
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Grid:
    """codes (out, in), scales and zero points (out, groups), the group of each input (in,)."""

    bits: int
    group_size: int
    codes: NDArray[np.int64]
    scales: NDArray[Any]
    zeros: NDArray[np.int64]
    groups: NDArray[np.int32]

    @property
    def symmetric(self) -> bool:
        return bool((self.zeros == 2 ** (self.bits - 1)).all())

    def weights(self) -> NDArray[np.float32]:
        """W[o, i] = scale[o, group of i] * (code[o, i] - zero[o, group of i]), one by one."""
        found = np.empty(self.codes.shape, np.float32)
        for column, group in enumerate(self.groups):
            scale = self.scales[:, group].astype(np.float32)
            found[:, column] = scale * (self.codes[:, column] - self.zeros[:, group])
        return found


def random_grid(
    bits: int,
    shape: tuple[int, int],
    group_size: int,
    *,
    symmetric: bool = True,
    shuffled: bool = False,
    seed: int = 0,
) -> Grid:
    """Zero points of an asymmetric grid are 1 to 2^bits - 1: what version 1 can hold too."""
    generator = np.random.default_rng(seed)
    rows, columns = shape
    width = columns if group_size == -1 else group_size
    count = -(-columns // width)
    zeros = np.full((rows, count), 2 ** (bits - 1))
    if not symmetric:
        zeros = generator.integers(1, 2**bits, (rows, count))
    groups = (np.arange(columns) // width).astype(np.int32)
    return Grid(
        bits,
        group_size,
        generator.integers(0, 2**bits, shape),
        generator.normal(0, 0.02, (rows, count)).astype(np.float16),
        zeros,
        generator.permutation(groups) if shuffled else groups,
    )


def to_words(numbers: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Each row as one long binary number, its first code lowest, cut into 32-bit words."""
    rows = []
    for row in numbers:
        whole = sum(int(number) << (bits * place) for place, number in enumerate(row))
        size = 4 * -(-len(row) * bits // 32)
        rows.append(np.frombuffer(whole.to_bytes(size, "little"), "<i4"))
    return np.stack(rows)


def gptq_arrays(grid: Grid, version: int = 1) -> Arrays:
    """One module of a GPTQ file."""
    missing = 1 if version == 1 else 0
    stored = (grid.zeros - missing) % 2**grid.bits
    return {
        "qweight": to_words(grid.codes, grid.bits).T,
        "qzeros": to_words(stored.T, grid.bits),
        "scales": grid.scales.T,
        "g_idx": grid.groups,
    }


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq_arrays(grid: Grid) -> Arrays:
    """One module of an AWQ file."""

    def packed(numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        words = np.zeros((len(numbers), numbers.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for digit, place in enumerate(AWQ_ORDER):
                nibble = numbers[:, 8 * column + place].astype(np.uint32)
                words[:, column] |= nibble << np.uint32(4 * digit)
        return words.view(np.int32)

    return {
        "qweight": packed(grid.codes.T),
        "qzeros": packed(grid.zeros.T),
        "scales": grid.scales.T,
    }


def compressed_arrays(grid: Grid) -> Arrays:
    """One module of a compressed-tensors file."""
    arrays = {
        "weight_packed": to_words(grid.codes, grid.bits),
        "weight_scale": grid.scales,
        "weight_shape": np.array(grid.codes.shape),
    }
    if not grid.symmetric:
        arrays["weight_zero_point"] = to_words(grid.zeros.T, grid.bits).T
    return arrays


MODULE = "model.layers.1.mlp.down_proj"
WEIGHT = f"{MODULE}.weight"


def write_model(
    path: Path, modules: Mapping[str, Arrays], config: Mapping[str, Any] | None, **more: Any
) -> Path:
    """A tiny model with some of its linear layers stored quantized."""
    tensors = make_tensors(**more)
    write_checkpoint(
        path, tensors, configuration={} if config is None else {"quantization_config": config}
    )
    stored = {name: array.astype(np.float16) for name, array in tensors.items()}
    for module, arrays in modules.items():
        del stored[f"{module}.weight"]
        stored |= {f"{module}.{name}": array for name, array in arrays.items()}
    write_safetensors(path / "model.safetensors", stored)
    return path


def change_config(path: Path, change: Mapping[str, Any]) -> None:
    """Other settings in a directory's quantization_config."""
    file = path / "config.json"
    configuration = json.loads(file.read_text())
    configuration["quantization_config"] |= change
    file.write_text(json.dumps(configuration))


FLOAT_LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""What the codes of a 4-bit float (E2M1) stand for."""


@dataclass(frozen=True)
class FloatGrid:
    """4-bit floats: codes (out, in) and the bytes of their scales (out, groups)."""

    codes: NDArray[np.uint8]
    exponents: NDArray[np.uint8]  # 2^(e-127) for each 32 inputs

    def weights(self) -> NDArray[np.float32]:
        """W[o, i] = level[o, i] * 2^(exponent[o, i / 32] - 127), one by one."""
        scale = np.exp2(self.exponents.astype(np.float64) - 127)
        found = np.empty(self.codes.shape, np.float64)
        for column in range(self.codes.shape[1]):
            found[:, column] = FLOAT_LEVELS[self.codes[:, column]] * scale[:, column // 32]
        return found.astype(np.float32)

    def arrays(self) -> Arrays:
        """One module of a compressed-tensors file, mxfp4-pack-quantized."""
        low, high = self.codes[:, 0::2], self.codes[:, 1::2]
        return {"weight_packed": low + 16 * high, "weight_scale": self.exponents}


def random_floats(shape: tuple[int, int], seed: int = 0) -> FloatGrid:
    """Scales that fp16 holds."""
    generator = np.random.default_rng(seed)
    exponents = generator.integers(104, 144, (shape[0], shape[1] // 32)).astype(np.uint8)
    return FloatGrid(generator.integers(0, 16, shape).astype(np.uint8), exponents)


@dataclass(frozen=True)
class ScaledFloatGrid:
    """4-bit floats with 8-bit scales (out, groups of 16), and a number that divides these."""

    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    divisor: np.float32

    def weights(self) -> NDArray[np.float32]:
        """W[o, i] = level[o, i] * (scale[o, i / 16] / divisor), rounded to f32 twice."""
        found = np.empty(self.codes.shape, np.float32)
        for column in range(self.codes.shape[1]):
            scale = self.scales[:, column // 16].astype(np.float32) / self.divisor
            found[:, column] = FLOAT_LEVELS[self.codes[:, column]].astype(np.float32) * scale
        return found

    def arrays(self) -> Arrays:
        """One module of a compressed-tensors file, nvfp4-pack-quantized."""
        low, high = self.codes[:, 0::2], self.codes[:, 1::2]
        return {
            "weight_packed": low + 16 * high,
            "weight_scale": self.scales,
            "weight_global_scale": np.array([self.divisor]),
        }


def random_scaled_floats(shape: tuple[int, int], seed: int = 0) -> ScaledFloatGrid:
    """All scales above 0 that there are, and 0."""
    generator = np.random.default_rng(seed)
    scales = generator.integers(0, 127, (shape[0], shape[1] // 16)).astype(np.uint8)
    return ScaledFloatGrid(
        generator.integers(0, 16, shape).astype(np.uint8),
        scales.view(ml_dtypes.float8_e4m3fn),
        np.float32(2688 / 0.37),
    )


NV_WEIGHTS = {
    "group_size": 16,
    "strategy": "tensor_group",
    "scale_dtype": "torch.float8_e4m3fn",
    "zp_dtype": "torch.float8_e4m3fn",
}
"""What NVFP4 says of weights in place of MXFP4's."""


def float_scheme(targets: list[str], **more: Any) -> dict[str, Any]:
    """One group of config_groups, as llm-compressor writes MXFP4A16."""
    weights = {
        "num_bits": 4,
        "type": "float",
        "symmetric": True,
        "group_size": 32,
        "strategy": "group",
        "dynamic": False,
        "scale_dtype": "torch.uint8",
        "zp_dtype": "torch.uint8",
    }
    return {
        "targets": targets,
        "weights": weights | more,
        "input_activations": None,
        "format": "mxfp4-pack-quantized",
    }


def check_weights(
    path: Path, grid: Grid | FloatGrid | ScaledFloatGrid
) -> StoredCodes | StoredFloats:
    """A module in a directory has the weights of the grid, whole and in parts; its entry."""
    tensors, expected = open_directory(path).tensors, grid.weights()
    np.testing.assert_array_equal(tensors.read_float(WEIGHT), expected)
    for rows in (slice(3, 5), slice(17, 64), slice(64, 64)):
        np.testing.assert_array_equal(tensors.read_float(WEIGHT, rows), expected[rows])
    entry = tensors.entry(WEIGHT)
    assert isinstance(entry, StoredCodes | StoredFloats)
    return entry
