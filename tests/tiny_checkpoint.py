"""A tiny random LLaMA checkpoint, written in milliseconds: three blocks, one token per byte.

In: a directory and what shall differ. Out: the directory: config.json, shards, tokenizer.json.
The safetensors writer is this file's own, so that it can also write what no honest program would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers.models import BPE

Tensors = dict[str, NDArray[Any]]

HIDDEN, FEED_FORWARD, BLOCKS, VOCABULARY, POSITIONS = 64, 96, 3, 300, 256
BEGIN, END = 256, 257

CONFIGURATION: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FEED_FORWARD,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
}

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
}

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.layers.1.input_layernorm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"
DOWN = "model.layers.2.mlp.down_proj.weight"


def make_tensors(
    seed: int = 0,
    tied: bool = True,
    hidden: int = HIDDEN,
    feed_forward: int = FEED_FORWARD,
    blocks: int = BLOCKS,
) -> Tensors:
    """Weights in f32 that f16 and bf16 hold too, by name in the order of the model."""
    generator = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        drawn = generator.normal(0.0, columns**-0.5, (rows, columns))
        return drawn.astype(np.float16).astype(ml_dtypes.bfloat16).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return (1 + generator.integers(-8, 9, hidden) / 32).astype(np.float32)

    tensors: Tensors = {EMBEDDING: matrix(VOCABULARY, hidden)}
    for block in range(blocks):
        names = f"model.layers.{block}"
        tensors |= {
            f"{names}.input_layernorm.weight": norm(),
            f"{names}.self_attn.q_proj.weight": matrix(64, hidden),
            f"{names}.self_attn.k_proj.weight": matrix(32, hidden),
            f"{names}.self_attn.v_proj.weight": matrix(32, hidden),
            f"{names}.self_attn.o_proj.weight": matrix(hidden, 64),
            f"{names}.post_attention_layernorm.weight": norm(),
            f"{names}.mlp.gate_proj.weight": matrix(feed_forward, hidden),
            f"{names}.mlp.up_proj.weight": matrix(feed_forward, hidden),
            f"{names}.mlp.down_proj.weight": matrix(hidden, feed_forward),
        }
    tensors["model.norm.weight"] = norm()
    return tensors if tied else tensors | {HEAD: matrix(VOCABULARY, hidden)}


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    *,
    dtype: str = "F16",
    shards: int = 1,
    configuration: Mapping[str, Any] | None = None,
) -> Path:
    """A model directory; `configuration` holds what its config.json says beside the sizes."""
    path.mkdir(parents=True, exist_ok=True)
    chosen = make_tensors() if tensors is None else tensors
    written = CONFIGURATION | sizes_of(chosen) | dict(configuration or {})
    (path / "config.json").write_text(json.dumps(written))
    (path / "tokenizer.json").write_text(tokenizer_json())
    (path / "tokenizer_config.json").write_text("{}")
    stored = {name: array.astype(DTYPES[dtype]) for name, array in chosen.items()}
    if shards == 1:
        write_safetensors(path / "model.safetensors", stored)
    else:
        write_shards(path, stored, shards)
    return path


def sizes_of(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What config.json must say of these tensors, as far as they are there."""
    found: dict[str, Any] = {"tie_word_embeddings": HEAD not in tensors}
    norms = [name for name in tensors if name.endswith("input_layernorm.weight")]
    found["num_hidden_layers"] = len(norms)
    down = [array for name, array in tensors.items() if name.endswith("down_proj.weight")]
    found["hidden_size"], found["intermediate_size"] = down[0].shape
    return found


def write_shards(path: Path, tensors: Mapping[str, NDArray[Any]], count: int) -> None:
    """Tensors dealt out to so many files, and their index."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for place in range(count):
        file = f"model-{place + 1:05}-of-{count:05}.safetensors"
        dealt = names[place::count]
        write_safetensors(path / file, {name: tensors[name] for name in dealt})
        weight_map |= dict.fromkeys(dealt, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """A safetensors file as the format's description asks."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        header[name] = entry(NAMES[array.dtype], array.shape, position, position + array.nbytes)
        position += array.nbytes
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    write_raw(path, json.dumps(header).encode(), data)


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor's line of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_raw(path: Path, header: bytes, data: bytes, claimed_length: int | None = None) -> None:
    """A file from its parts, true or not."""
    length = len(header) if claimed_length is None else claimed_length
    path.write_bytes(length.to_bytes(8, "little") + header + data)


@cache
def tokenizer_json() -> str:
    """A byte-level tokenizer: token b for byte b, then a begin and an end token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    tokenizer = tokenizers.Tokenizer(BPE({letters[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer.to_str()
