"""Random LLaMA checkpoints of any size, written with little memory.

In: sizes, a directory, a seed. Out: config.json, bf16 shards with their index, the tokenizer of the
embedded model (4096 byte-level tokens). The weights are normal, norms are 1: the model knows
nothing, but its numbers stay finite and every shape is real. Refuses vocabularies below 4096.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.architectures.registry import plan_of
from crumb.checkpoints.huggingface.weight_files import INDEX
from crumb.checkpoints.safetensors import ArrayToWrite, write_file
from crumb.embedded import MODELS
from crumb.operations.operation import TensorSpec

BF16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 512 << 20
ROWS_AT_ONCE = 1024
TOKENIZER_MODEL = MODELS["novella-7m"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
TOKENIZER_TOKENS = 4096


@dataclass(frozen=True)
class Sizes:
    """What decides every shape of the checkpoint."""

    blocks: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    vocabulary: int
    positions: int

    def configuration(self) -> dict[str, Any]:
        """config.json. The tokens 0 and 1 are those of the tokenizer."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }

    def plan(self) -> Plan:
        """The Plan of the checkpoint. Raises: CheckpointError for sizes that contradict."""
        return plan_of(self.configuration())


def write_checkpoint(path: Path, sizes: Sizes, seed: int) -> None:
    """Write a whole checkpoint into a new directory; one tensor is in memory at a time."""
    if sizes.vocabulary < TOKENIZER_TOKENS:
        raise SystemExit(f"the tokenizer needs a vocabulary of at least {TOKENIZER_TOKENS}")
    path.mkdir()
    shards: list[dict[str, ArrayToWrite]] = [{}]
    for number, spec in enumerate(sizes.plan().tensors()):
        array = ArrayToWrite(BF16, spec.shape, partial(random_tensor, spec, (seed, number)))
        filled = sum(each.size_bytes for each in shards[-1].values())
        if filled and filled + array.size_bytes > SHARD_BYTES:
            shards.append({})
        shards[-1][spec.name] = array
    weight_map: dict[str, str] = {}
    for number, arrays in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(path / name, arrays, {"format": "pt"})
        weight_map |= dict.fromkeys(arrays, name)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(sizes.configuration(), indent=1))
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER_MODEL / name, path / name)


def random_tensor(spec: TensorSpec, seed: tuple[int, int]) -> NDArray[Any]:
    """A norm of ones, or a matrix of deviation .02, filled some rows at a time."""
    tensor = np.ones(spec.shape, BF16)
    if spec.matrix:
        generator = np.random.default_rng(seed)
        for begin in range(0, len(tensor), ROWS_AT_ONCE):
            rows = tensor[begin : begin + ROWS_AT_ONCE]
            rows[:] = 0.02 * generator.standard_normal(rows.shape, np.float32)
    return tensor


def checkpoint_bytes(plan: Plan) -> int:
    """Bytes of all tensors in bf16."""
    return BF16.itemsize * sum(prod(spec.shape) for spec in plan.tensors())
