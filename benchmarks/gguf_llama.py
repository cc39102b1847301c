"""Random LLaMA models, or mixtures of Qwen3-MoE, as GGUF files, every matrix of one ggml type.

In: sizes, a type, a seed. Out: one file that llama.cpp loads. Blocks are random bytes under scales
that give the weights a deviation of .02, norms are 1; the numbers stay finite and mean nothing.
Routers are f32.
The tokenizer is a list of made-up words behind the 256 byte tokens.
Needs the gguf package and nothing of crumb. Refuses widths that are no multiple of a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize
from numpy.typing import NDArray

DEVIATION = 0.02
SAMPLE_BLOCKS = 4096
"""Blocks that say how large the values of a type are at scale 1; their deviation is 1 % sure."""
ROWS_AT_ONCE = 4096
SPECIAL_TOKENS = (("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL))
SPECIAL_TOKENS += (("</s>", TokenType.CONTROL),)
BYTE_TOKENS = 256


@dataclass(frozen=True)
class BlockFields:
    """Where a block of a type holds its fp16 scale, in bytes, and its fp16 scale of the minima."""

    scale: int
    minimum: int | None = None
    minimum_ratio: float = 0.0  # scale of the minima over scale, so that the mean value is 0


TYPES = {
    "Q8_0": BlockFields(scale=0),
    "Q4_0": BlockFields(scale=0),
    "Q6_K": BlockFields(scale=208),
    "Q5_K": BlockFields(scale=0, minimum=2, minimum_ratio=15.5),
    "Q4_K": BlockFields(scale=0, minimum=2, minimum_ratio=7.5),
    "Q3_K": BlockFields(scale=108),
    "Q2_K": BlockFields(scale=80, minimum=82, minimum_ratio=1.5),
}


@dataclass(frozen=True)
class LlamaSizes:
    """What decides every shape. The defaults have 1.10 billion parameters."""

    blocks: int = 16
    hidden: int = 2048
    feed_forward: int = 8192
    heads: int = 32
    key_value_heads: int = 8
    vocabulary: int = 32000
    positions: int = 4096
    experts: int = 0  # 0: LLaMA; else Qwen3-MoE, whose experts are `feed_forward` wide
    used: int = 8  # experts of a token

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def matrices(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every matrix, or of those of all experts; the head is untied."""
        square, key_value = (self.hidden, self.hidden), self.head_dim * self.key_value_heads
        many, word = ((self.experts,), "_exps") if self.experts else ((), "")
        yield "token_embd", (self.vocabulary, self.hidden)
        for block in range(self.blocks):
            yield f"blk.{block}.attn_q", square
            yield f"blk.{block}.attn_k", (key_value, self.hidden)
            yield f"blk.{block}.attn_v", (key_value, self.hidden)
            yield f"blk.{block}.attn_output", square
            yield f"blk.{block}.ffn_gate{word}", (*many, self.feed_forward, self.hidden)
            yield f"blk.{block}.ffn_up{word}", (*many, self.feed_forward, self.hidden)
            yield f"blk.{block}.ffn_down{word}", (*many, self.hidden, self.feed_forward)
        yield "output", (self.vocabulary, self.hidden)

    def floats(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every norm and router."""
        for block in range(self.blocks):
            yield f"blk.{block}.attn_norm", (self.hidden,)
            yield f"blk.{block}.ffn_norm", (self.hidden,)
            if self.experts:
                yield f"blk.{block}.attn_q_norm", (self.head_dim,)
                yield f"blk.{block}.attn_k_norm", (self.head_dim,)
                yield f"blk.{block}.ffn_gate_inp", (self.experts, self.hidden)
        yield "output_norm", (self.hidden,)


class RandomBlocks:
    """Random matrices of one type."""

    def __init__(self, type_name: str, seed: int) -> None:
        self.type = GGMLQuantizationType[type_name]
        self.fields = TYPES[type_name]
        self.block_weights, self.block_bytes = GGML_QUANT_SIZES[self.type]
        self.generator = np.random.default_rng(seed)
        self.scale = 1.0
        self.scale = DEVIATION / float(dequantize(self.draw(1, SAMPLE_BLOCKS), self.type).std())

    def draw(self, rows: int, blocks: int) -> NDArray[np.uint8]:
        """Rows of `blocks` blocks each, as bytes."""
        shape = (rows, blocks, self.block_bytes)
        drawn = np.frombuffer(self.generator.bytes(rows * blocks * self.block_bytes), np.uint8)
        drawn = drawn.reshape(shape).copy()
        # Codes such as -8 to 7 have a mean, which would outgrow everything else; signs remove it.
        scales = self.scale * self.generator.choice([-1.0, 1.0], (rows, blocks, 1))
        self._put(drawn, self.fields.scale, scales)
        if self.fields.minimum is not None:
            self._put(drawn, self.fields.minimum, scales * self.fields.minimum_ratio)
        return drawn.reshape(rows, blocks * self.block_bytes)

    @staticmethod
    def _put(drawn: NDArray[np.uint8], offset: int, values: NDArray[np.float64]) -> None:
        drawn[..., offset : offset + 2] = values.astype("<f2").view(np.uint8)

    def row_bytes(self, in_features: int) -> int:
        """Bytes of one row. Exits for a row that ends inside a block."""
        blocks, left = divmod(in_features, self.block_weights)
        if left:
            raise SystemExit(
                f"a row of {in_features} weights is no multiple of {self.block_weights}, "
                f"the block of {self.type.name}"
            )
        return blocks * self.block_bytes

    def matrix(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A whole matrix, or those of all experts, as bytes, filled some rows at a time."""
        *outer, in_features = shape
        blocks = in_features // self.block_weights
        packed = np.empty((int(np.prod(outer)), self.row_bytes(in_features)), np.uint8)
        for begin in range(0, len(packed), ROWS_AT_ONCE):
            rows = packed[begin : begin + ROWS_AT_ONCE]
            rows[:] = self.draw(len(rows), blocks)
        return packed.reshape(*outer, -1)


def write_gguf(path: Path, sizes: LlamaSizes, type_name: str, seed: int = 0) -> None:
    """Write the model; one matrix is in memory at a time."""
    if sizes.vocabulary < BYTE_TOKENS + len(SPECIAL_TOKENS):
        raise SystemExit(f"a vocabulary of {sizes.vocabulary} has no room for the byte tokens")
    random = RandomBlocks(type_name, seed)
    writer = GGUFWriter(path, "qwen3moe" if sizes.experts else "llama")
    add_sizes(writer, sizes)
    add_tokenizer(writer, sizes.vocabulary)
    for name, (*outer, columns) in sizes.matrices():
        shape = (*outer, random.row_bytes(columns))
        kind: Any = np.dtype(np.uint8)
        writer.add_tensor_info(f"{name}.weight", shape, kind, int(np.prod(shape)), random.type)
    for name, shape in sizes.floats():
        size = 4 * int(np.prod(shape))
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape in sizes.matrices():
        writer.write_tensor_data(random.matrix(shape))
    for _, shape in sizes.floats():
        drawn = np.random.default_rng(seed).standard_normal(shape) * DEVIATION
        writer.write_tensor_data((drawn + (len(shape) == 1)).astype(np.float32))
    writer.close()


def add_sizes(writer: GGUFWriter, sizes: LlamaSizes) -> None:
    """The keys of the architecture."""
    writer.add_name("random LLaMA")
    writer.add_block_count(sizes.blocks)
    writer.add_context_length(sizes.positions)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.feed_forward)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_value_heads)
    writer.add_rope_dimension_count(sizes.hidden // sizes.heads)
    if sizes.experts:
        writer.add_key_length(sizes.head_dim)
        writer.add_value_length(sizes.head_dim)
        writer.add_expert_count(sizes.experts)
        writer.add_expert_used_count(sizes.used)
        writer.add_expert_feed_forward_length(sizes.feed_forward)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(sizes.vocabulary)


def add_tokenizer(writer: GGUFWriter, vocabulary: int) -> None:
    """Special tokens, the 256 bytes, then words; a later word has a lower score."""
    names = [name for name, _ in SPECIAL_TOKENS]
    kinds = [kind for _, kind in SPECIAL_TOKENS]
    names += [f"<0x{byte:02X}>" for byte in range(BYTE_TOKENS)]
    kinds += [TokenType.BYTE] * BYTE_TOKENS
    words = vocabulary - len(names)
    names += [f"\u2581word{number}" for number in range(words)]
    kinds += [TokenType.NORMAL] * words
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores([float(-number) for number in range(vocabulary)])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in vars(LlamaSizes()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--type", choices=sorted(TYPES), default="Q4_0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    asked = parse_arguments()
    sizes = LlamaSizes(**{name: getattr(asked, name) for name in vars(LlamaSizes())})
    write_gguf(asked.out, sizes, asked.type, asked.seed)


if __name__ == "__main__":
    main()
