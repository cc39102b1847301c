"""Random quantized LLaMA, RWKV-4 and T5 models of any size, as crumb directories, no solver needed.

In: sizes, a format's name, a directory, a seed. Out: a directory that `crumb.load` runs: tiles of
random codes under scales that keep the numbers finite, every matrix in the one format.
The model knows nothing; its bytes and its speed are those of a real one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from random_checkpoint import TOKENIZER_FILES, TOKENIZER_MODEL, Sizes

from crumb.architectures.plan import Plan
from crumb.architectures.registry import plan_of
from crumb.checkpoints.crumb.reader import matrix_metadata, quantization_config
from crumb.checkpoints.safetensors import ArrayToWrite, write_file
from crumb.formats.catalog import Format, ZeroKind, parse_format
from crumb.formats.layouts.tile import TILE_ROWS, Sharing, blocks, fields, sharing
from crumb.formats.packed_tensor import stored_shape
from crumb.operations.operation import TensorSpec

BILLION = Sizes(
    blocks=16,
    hidden=2048,
    feed_forward=8192,
    heads=32,
    key_value_heads=8,
    vocabulary=32000,
    positions=2048,
)
"""1.10 billion parameters: the model of the speed benchmarks."""


@dataclass(frozen=True)
class RecurrentSizes:
    """What decides every shape of an RWKV-4 model."""

    blocks: int
    hidden: int
    vocabulary: int

    def configuration(self) -> dict[str, Any]:
        """config.json."""
        return {
            "model_type": "rwkv",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.blocks,
            "vocab_size": self.vocabulary,
            "context_length": 1024,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }

    def plan(self) -> Plan:
        """The Plan of the model."""
        return plan_of(self.configuration())


@dataclass(frozen=True)
class EncoderSizes:
    """What decides every shape of a T5 1.1 model; both halves are alike."""

    blocks: int  # of each half
    hidden: int
    feed_forward: int
    heads: int  # of 64 features
    vocabulary: int

    def configuration(self) -> dict[str, Any]:
        """config.json."""
        return {
            "model_type": "t5",
            "d_model": self.hidden,
            "d_kv": 64,
            "d_ff": self.feed_forward,
            "num_layers": self.blocks,
            "num_decoder_layers": self.blocks,
            "num_heads": self.heads,
            "vocab_size": self.vocabulary,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 1,
        }

    def plan(self) -> Plan:
        """The Plan of the model."""
        return plan_of(self.configuration())


FLAN_BASE = EncoderSizes(blocks=12, hidden=768, feed_forward=2048, heads=12, vocabulary=32128)
"""The shape of Flan-T5-base: 248 million parameters."""

BILLION_RECURRENT = RecurrentSizes(blocks=16, hidden=2048, vocabulary=50277)
"""1.08 billion parameters."""


def random_tiles(spec: TensorSpec, format: Format, seed: tuple[int, int]) -> NDArray[np.uint8]:
    """Tiles of random codes; scales are such that weights have deviation .02 or so."""
    out_features, in_features = spec.shape
    shape = stored_shape(format, out_features, in_features)
    generator = np.random.default_rng(seed)
    tiles = generator.integers(0, 256, shape, np.uint8)
    scale, minimum = np.float16(0.07 / (1 << format.bits)), np.float16(-0.035)
    sub = format.row.super_block
    if sub is not None:
        scale, minimum = scale / np.float16(sub.highest), -minimum / np.float16(sub.highest)
    for block in blocks(format, in_features):
        at = block.offset_bytes
        for field in fields(format):
            end = at + field.size_bytes
            if field.name == "scale":
                tiles[:, at:end] = np.full(TILE_ROWS, scale).view(np.uint8)
            elif field.name == "minimum":
                tiles[:, at:end] = np.full(TILE_ROWS, minimum).view(np.uint8)
            elif field.name == "zero_point":
                tiles[:, at:end] = 1 << (format.bits - 1)
            elif sub is not None and sharing(format) is Sharing.NOTHING:
                lowest = 0 if format.zero is ZeroKind.MINIMUM else sub.lowest
                drawn = generator.integers(lowest, sub.highest + 1, (len(tiles), end - at))
                tiles[:, at:end] = drawn.astype(np.uint8)
            at = end
    return tiles


def write_quantized(
    path: Path, sizes: Sizes | RecurrentSizes | EncoderSizes, format: Format, seed: int = 0
) -> None:
    """Write a whole model into a new directory; one tensor is in memory at a time."""
    path.mkdir(parents=True)
    matrices: dict[str, ArrayToWrite] = {}
    small: dict[str, ArrayToWrite] = {}
    metadata = {"format": "crumb"}
    for number, spec in enumerate(sizes.plan().tensors()):
        if not spec.matrix:
            ones = partial(np.ones, spec.shape, ml_dtypes.bfloat16)
            small[spec.name] = ArrayToWrite(np.dtype(ml_dtypes.bfloat16), spec.shape, ones)
            continue
        shape = stored_shape(format, *spec.shape)
        read = partial(random_tiles, spec, format, (seed, number))
        matrices[f"{spec.name}.tiles"] = ArrayToWrite(np.dtype(np.uint8), shape, read)
        metadata[spec.name] = matrix_metadata(format, (spec.shape[0], spec.shape[1]))
    write_file(path / "model.safetensors", matrices | small, metadata)
    configuration = sizes.configuration() | {"quantization_config": quantization_config()}
    (path / "config.json").write_text(json.dumps(configuration, indent=1))
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER_MODEL / name, path / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", help="such as int3-g64-fixed")
    parser.add_argument("out", type=Path)
    kinds = {"llama": BILLION, "rwkv": BILLION_RECURRENT, "t5": FLAN_BASE}
    parser.add_argument("--kind", choices=sorted(kinds), default="llama")
    asked = parser.parse_args()
    sizes = kinds[asked.kind]
    write_quantized(asked.out, sizes, parse_format(asked.format))


if __name__ == "__main__":
    main()
