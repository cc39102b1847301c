"""Speed of a mixture of experts: decoding against the bandwidth over the bytes really read.

In: bits on the command line, 4 where there are none. Out: JSON of the shape of the goals, random
codes in memory, qwen3_moe with 24 blocks of 1024, 64 experts of 768, 8 used, groups of 128; every
pass of decoding is paired with a read pass. Refuses machines without the memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from crumb.architectures.registry import plan_of
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.tensor_map import StoredFloats, StoredPacked, TensorMap
from crumb.files.model_files import DirectoryFiles
from crumb.formats.catalog import Format, make_format
from crumb.formats.packed_tensor import PackedTensor, stored_shape
from crumb.kernels.limits import read_pass, reading_array
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.memory_plan import EngineSettings
from crumb.run.speed import work_of

SHAPE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 3072,
    "max_position_embeddings": 4096,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
THREADS, ROUNDS, TOKENS, PROMPT = 2, 9, 16, 256


@dataclass(frozen=True)
class RandomTiles(StoredPacked):
    """A matrix of random codes with small scales, made where it is mapped."""

    @property
    def size_bytes(self) -> int:
        return int(np.prod(stored_shape(self.format, *self.shape)))

    used_bytes = size_bytes

    def map(self, at_once: bool = True) -> PackedTensor:  # noqa: ARG002
        rng = np.random.default_rng(self.shape)
        tiles = rng.integers(0, 256, stored_shape(self.format, *self.shape), np.uint8)
        block = 32 + 2 * self.format.bits * self.format.group_width(self.shape[1])
        for begin in range(0, tiles.shape[1], block):
            scale = np.full((len(tiles), 16), 0.01, np.float16)
            tiles[:, begin : begin + 32] = scale.view(np.uint8)
        return PackedTensor(self.format, *self.shape, tiles)


def entries(format: Format) -> Iterator[tuple[str, Any]]:
    """Matrices of random codes, floats of small numbers."""
    for seed, spec in enumerate(plan_of(SHAPE).tensors()):
        if spec.matrix:
            yield spec.name, RandomTiles(format, spec.shape[:2], None)
            continue

        def read(rows: slice, seed: int = seed, shape: tuple[int, ...] = spec.shape) -> Any:
            drawn = np.random.default_rng(seed).standard_normal(shape) * 0.05
            return (drawn + (len(shape) == 1)).astype(np.float32)[rows]

        size = 4 * int(np.prod(spec.shape))
        yield spec.name, StoredFloats(np.dtype(np.float32), spec.shape, size, "float32", read)


def main() -> None:
    """Print the measurements of one width."""
    bits = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    here = Path()
    tensors = TensorMap(here, dict(entries(make_format(bits, 128, "fixed"))))
    checkpoint = Checkpoint(here, SHAPE, plan_of(SHAPE), tensors, (), DirectoryFiles(here))
    settings = EngineSettings(context_tokens=1024, step_tokens=PROMPT, threads=THREADS)
    engine, work = Engine(checkpoint, settings), work_of(checkpoint)
    array = reading_array(1 << 30)
    prompt = [int(each) for each in np.random.default_rng(0).integers(0, 32000, PROMPT)]
    shares, rates, reads, prompts = [], [], [], []
    for _ in range(ROUNDS):
        sequence = engine.begin(prompt, reuse=False)
        begin = time.perf_counter()
        token = int(engine.run([StepPart(sequence, prompt, Rows.LAST)])[0].argmax())
        prompts.append(PROMPT / (time.perf_counter() - begin))
        begin = time.perf_counter()
        for _ in range(TOKENS):
            token = int(engine.run([StepPart(sequence, [token], Rows.LAST)])[0].argmax())
        seconds = (time.perf_counter() - begin) / TOKENS
        engine.end(sequence)
        reads.append(array.nbytes / read_pass(array, THREADS))
        rates.append(1 / seconds)
        shares.append(work.bytes_read(1) / seconds / reads[-1])
    print(
        json.dumps(
            {
                "bits": bits,
                "parameters": checkpoint.plan.parameters(),
                "weights_bytes": work.weight_bytes,
                "bytes_read_per_token": work.bytes_read(1),
                "decode_tokens_per_second": median(rates),
                "read_bytes_per_second": median(reads),
                "share_of_bandwidth": median(shares),
                "prompt_tokens_per_second": median(prompts),
                "planned_bytes": engine.memory.total_bytes,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
