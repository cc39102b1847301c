"""qwen3_moe: qwen3 with experts in some blocks."""

from dataclasses import replace

from crumb.architectures.block import Block, FeedForward
from crumb.architectures.configuration import read_flag, read_window
from crumb.architectures.family import BlockKind
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import (
    QWEN_DEFAULTS,
    QWEN_KEYS,
    QWEN_TENSORS,
    Routing,
    is_sparse,
    mixture,
    sequential,
)
from crumb.architectures.reader import Reader


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    slides = read_flag(reader.configuration, "use_sliding_window", False)
    window = read_window(reader.configuration, "sliding_window", 4096) if slides else None
    return (BlockKind(reader.rope(), window),) * reader.sizes.blocks


def block_of(reader: Reader, block: int) -> Block:
    """Experts where the configuration has them, else one MLP."""
    if not is_sparse(reader, block):
        return sequential(FeedForward())
    finish = "sum" if reader.flag("norm_topk_prob") else "none"
    return sequential(mixture(reader, Routing("softmax", finish)))


FAMILY = replace(
    LLAMA,
    model_type="qwen3_moe",
    keys={**LLAMA.keys, **QWEN_KEYS},
    defaults={**LLAMA.defaults, **QWEN_DEFAULTS, "key_value_heads": 4, "positions": 32768}
    | {"experts": 128, "used": 8, "expert_inner": 768},
    tensors={
        **LLAMA.tensors,
        **QWEN_TENSORS,
        "query_norm": "model.layers.{block}.self_attn.q_norm",
        "key_norm": "model.layers.{block}.self_attn.k_norm",
    },
    biases={role: flag for role, flag in LLAMA.biases.items() if flag == "attention_bias"},
    kinds=_kinds,
    block=block_of,
)
