"""GGUF files from their parts, honest or not: a tiny model, and every field to lie about.

In: key-values, tensors and what shall differ. Out: bytes of a file.
The writer is this file's own, so that it can also write what no honest program would.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

TYPES = {
    "u8": (0, "<B"),
    "i8": (1, "<b"),
    "u16": (2, "<H"),
    "i16": (3, "<h"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<B"),
    "u64": (10, "<Q"),
    "i64": (11, "<q"),
    "f64": (12, "<d"),
}
STRING, ARRAY = 8, 9

HIDDEN, HEADS, HEAD_DIM, FEED_FORWARD, VOCABULARY = 8, 2, 4, 8, 8


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A string, whose length may be claimed to be another."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def scalar(kind: str, value: Any) -> bytes:
    """A number with its type."""
    number, form = TYPES[kind]
    return u32(number) + struct.pack(form, value)


def text(value: str | bytes) -> bytes:
    """A string with its type."""
    return u32(STRING) + string(value)


def array(kind: str, values: Sequence[Any], count: int | None = None) -> bytes:
    """An array of numbers or strings, whose length may be claimed to be another."""
    claimed = u64(len(values) if count is None else count)
    if kind == "string":
        return u32(ARRAY) + u32(STRING) + claimed + b"".join(map(string, values))
    number, form = TYPES[kind]
    return u32(ARRAY) + u32(number) + claimed + b"".join(struct.pack(form, each) for each in values)


@dataclass(frozen=True)
class Tensor:
    """One tensor; sizes, offset and type as the header shall claim them."""

    name: str | bytes
    sizes: tuple[int, ...]  # input features first
    data: bytes
    type: int = 0
    offset: int | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class File:
    """A whole file in parts."""

    keys: dict[str | bytes, bytes]  # key -> its value with the type
    tensors: tuple[Tensor, ...]
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    tensor_count: int | None = None
    key_count: int | None = None
    more_keys: bytes = b""  # behind the others, as they are

    def header(self) -> bytes:
        """All before the data, without padding."""
        pairs = b"".join(string(key) + value for key, value in self.keys.items()) + self.more_keys
        tensors, place = b"", 0
        for tensor in self.tensors:
            count = len(tensor.sizes) if tensor.dimensions is None else tensor.dimensions
            tensors += string(tensor.name) + u32(count) + b"".join(map(u64, tensor.sizes))
            tensors += u32(tensor.type) + u64(place if tensor.offset is None else tensor.offset)
            place += len(tensor.data) + -len(tensor.data) % self.alignment
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.keys) if self.key_count is None else self.key_count,
        )
        return self.magic + u32(self.version) + b"".join(map(u64, counts)) + pairs + tensors

    def raw(self) -> bytes:
        """The file's bytes; no padding behind the last tensor."""
        raw = self.header()
        for tensor in self.tensors:
            raw += bytes(-len(raw) % self.alignment) + tensor.data
        return raw

    def with_keys(self, **values: bytes) -> File:
        """The file with other values; a name's double underscores are dots."""
        return replace(self, keys=self.keys | {spelled(key): each for key, each in values.items()})

    def without(self, *keys: str) -> File:
        """The file without some keys."""
        left = {key: value for key, value in self.keys.items() if key not in map(spelled, keys)}
        return replace(self, keys=left)

    def with_tensor(self, which: str, /, **changes: Any) -> File:
        """The file with one tensor changed."""
        assert which in {tensor.name for tensor in self.tensors}
        changed = (
            replace(tensor, **changes) if tensor.name == which else tensor
            for tensor in self.tensors
        )
        return replace(self, tensors=tuple(changed))


def spelled(key: str) -> str:
    """A key from a Python name."""
    return key.replace("__", ".")


def tiny_model() -> File:
    """A llama of one block without a tokenizer, all in F32."""
    generator = np.random.default_rng(0)

    def tensor(name: str, *sizes: int) -> Tensor:
        drawn = generator.normal(0.0, 0.3, sizes[::-1]) + (len(sizes) == 1)
        return Tensor(f"{name}.weight", sizes, drawn.astype("<f4").tobytes())

    keys = {
        "general.architecture": text("llama"),
        "llama.block_count": scalar("u32", 1),
        "llama.context_length": scalar("u32", 16),
        "llama.embedding_length": scalar("u32", HIDDEN),
        "llama.feed_forward_length": scalar("u32", FEED_FORWARD),
        "llama.attention.head_count": scalar("u32", HEADS),
        "llama.attention.layer_norm_rms_epsilon": scalar("f32", 1e-5),
        "llama.vocab_size": scalar("u32", VOCABULARY),
    }
    tensors = (
        tensor("token_embd", HIDDEN, VOCABULARY),
        tensor("output_norm", HIDDEN),
        tensor("blk.0.attn_norm", HIDDEN),
        *(tensor(f"blk.0.attn_{part}", HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")),
        tensor("blk.0.ffn_norm", HIDDEN),
        *(tensor(f"blk.0.ffn_{part}", HIDDEN, FEED_FORWARD) for part in ("gate", "up", "down")),
    )
    return File({**keys}, tensors)


def speaking_model(kind: str) -> File:
    """The tiny model with eight tokens: of kind "gpt2", merged; or "llama", scored."""
    tokens = ["</s>", "<unk>", "a", "b", "ab", "aba", "baab", "Ġ" if kind == "gpt2" else "▁"]
    keys = {
        "model": text(kind),
        "tokens": array("string", tokens),
        "token_type": array("i32", [3, 2, 1, 1, 1, 1, 1, 1]),
        "eos_token_id": scalar("u32", 0),
        "unknown_token_id": scalar("u32", 1),
        "add_bos_token": scalar("bool", 0),
    }
    if kind == "gpt2":
        keys |= {"pre": text("gpt-2"), "merges": array("string", ["a b", "ab a"])}
    else:
        keys["scores"] = array("f32", [0.0, 0.0, *range(-1, -7, -1)])
    return tiny_model().with_keys(**{f"tokenizer__ggml__{key}": raw for key, raw in keys.items()})


def wide_model(type: int, block_bytes: int, data: bytes | None = None) -> File:
    """The tiny model with 32 inputs, its embedding quantized: one block in each row."""
    generator = np.random.default_rng(1)
    model = tiny_model()
    changed = []
    for tensor in model.tensors:
        sizes = tuple(32 if size == HIDDEN else size for size in tensor.sizes)
        if tensor.name == "token_embd.weight":
            sizes = (32, VOCABULARY)
            changed.append(
                Tensor(tensor.name, sizes, data or bytes(block_bytes * VOCABULARY), type)
            )
            continue
        drawn = generator.normal(0.0, 0.2, sizes[::-1]) + (len(sizes) == 1)
        changed.append(Tensor(tensor.name, sizes, drawn.astype("<f4").tobytes()))
    return replace(model, tensors=tuple(changed)).with_keys(
        llama__embedding_length=scalar("u32", 32), llama__feed_forward_length=scalar("u32", 32)
    )
