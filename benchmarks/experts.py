"""Speed of a mixture of experts: decoding against the bandwidth over the bytes really read.

In: bits on the command line, 4 where there are none; perhaps an environment of llama.cpp. Out: JSON
of the shape of the goals, random codes in memory, qwen3_moe with 24 blocks of 1024, 64 experts of
768, 8 used, groups of 128: tokens and bytes per second, the machine's read passes, ratios to
llama.cpp. Every round has a read pass, and a turn of llama.cpp. --tiny shows that it runs.
Refuses machines without the memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine
from peers import Peer, write_gguf

from crumb.architectures.registry import plan_of
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.tensor_map import StoredFloats, StoredPacked, TensorMap
from crumb.files.model_files import DirectoryFiles
from crumb.formats.catalog import Format, make_format
from crumb.formats.packed_tensor import PackedTensor, stored_shape
from crumb.kernels.limits import read_pass, reading_array
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.memory_plan import EngineSettings
from crumb.run.step_work import work_of

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
TINY = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "num_experts": 8}
TINY |= {"num_experts_per_tok": 2, "moe_intermediate_size": 256, "vocab_size": 1024}
THREADS, ROUNDS, TOKENS, PROMPT = 2, 9, 16, 256
GOALS = {"share_of_bandwidth": 0.8, "prompt_ratio": 2.0}
DECODE_GOALS = {2: 2.0, 3: 2.0}
"""Beside llama.cpp's Q4_K; 1.5 with other bits."""


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


class Ours:
    """The mixture in our engine."""

    def __init__(self, bits: int) -> None:
        here, format = Path(), make_format(bits, 128, "fixed")
        tensors = TensorMap(here, dict(entries(format)))
        checkpoint = Checkpoint(here, SHAPE, plan_of(SHAPE), tensors, (), DirectoryFiles(here))
        settings = EngineSettings(context_tokens=1024, step_tokens=PROMPT, threads=THREADS)
        self.engine, self.work = Engine(checkpoint, settings), work_of(checkpoint)
        self.parameters = checkpoint.plan.parameters()
        vocabulary = SHAPE["vocab_size"]
        self.prompt = np.random.default_rng(0).integers(0, vocabulary, PROMPT).tolist()

    def round(self) -> tuple[float, float]:
        """Tokens per second of a prompt, and of decoding behind it."""
        sequence = self.engine.begin(self.prompt, reuse=False)
        begin = time.perf_counter()
        token = int(self.engine.run([StepPart(sequence, self.prompt, Rows.LAST)])[0].argmax())
        middle = time.perf_counter()
        for _ in range(TOKENS):
            token = int(self.engine.run([StepPart(sequence, [token], Rows.LAST)])[0].argmax())
        end = time.perf_counter()
        self.engine.end(sequence)
        return PROMPT / (middle - begin), TOKENS / (end - middle)


def peer_file(asked: argparse.Namespace) -> Path:
    """The same shape for llama.cpp, written unless it is there."""
    path: Path = asked.folder / f"mixture-{asked.type}{'-tiny' if asked.tiny else ''}.gguf"
    if not path.exists():
        write_gguf(
            asked.peer_python,
            path,
            asked.type,
            blocks=SHAPE["num_hidden_layers"],
            hidden=SHAPE["hidden_size"],
            feed_forward=SHAPE["moe_intermediate_size"],
            heads=SHAPE["num_attention_heads"],
            key_value_heads=SHAPE["num_key_value_heads"],
            vocabulary=SHAPE["vocab_size"],
            experts=SHAPE["num_experts"],
            used=SHAPE["num_experts_per_tok"],
        )
    return path


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both programs by turns, a read pass before each; medians."""
    ours, array = Ours(asked.bits), reading_array(1 << 30)
    rounds: list[dict[str, float]] = []
    with ExitStack() as stack:
        peer = None
        if asked.peer_python:
            peer = stack.enter_context(Peer(asked.peer_python, peer_file(asked), THREADS))
        for _ in range(ROUNDS):
            read = array.nbytes / read_pass(array, THREADS)
            prompt, decode = ours.round()
            one = {"read_bytes_per_second": read, "prompt": prompt, "decode": decode}
            one["decode_bytes_per_second"] = ours.work.bytes_read(1) * decode
            one["share_of_bandwidth"] = one["decode_bytes_per_second"] / read
            if peer is not None:
                one["their_prompt"] = peer.prefill(PROMPT).tokens_per_second
                one["their_decode"] = peer.decode(TOKENS, prompt=PROMPT).tokens_per_second
                one["prompt_ratio"] = prompt / one["their_prompt"]
                one["decode_ratio"] = decode / one["their_decode"]
            rounds.append(one)
    medians = {name: median(each[name] for each in rounds) for name in rounds[0]}
    goals = GOALS | {"decode_ratio": DECODE_GOALS.get(asked.bits, 1.5)}
    return {
        "machine": describe_machine(),
        "threads": THREADS,
        "bits": asked.bits,
        "parameters": ours.parameters,
        "weights_bytes": ours.work.weight_bytes,
        "bytes_read_per_token": ours.work.bytes_read(1),
        "planned_bytes": ours.engine.memory.total_bytes,
        **medians,
        "met": {name: medians[name] >= least for name, least in goals.items() if name in medians},
    }


def main() -> None:
    """Print the measurements of one width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bits", nargs="?", type=int, default=4)
    parser.add_argument("--peer-python", help="of an environment with gguf and llama.cpp")
    parser.add_argument(
        "--tiny", action="store_true", help="a small shape, whose figures say nothing"
    )
    parser.add_argument("--type", default="Q4_K", help="of llama.cpp's file")
    parser.add_argument("--folder", type=Path, default=Path(), help="for llama.cpp's file")
    asked = parser.parse_args()
    SHAPE.update(TINY if asked.tiny else {})
    print(json.dumps(measure(asked), indent=1))


if __name__ == "__main__":
    main()
