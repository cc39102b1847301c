"""qwen3_5_moe_text: Qwen3.5 with experts, which its files hold stacked, and one that all use."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.family import Stacked
from crumb.architectures.mixture import with_gated_expert
from crumb.architectures.qwen3_5_text import FAMILY as QWEN3_5
from crumb.architectures.qwen3_next import mixer_of
from crumb.architectures.reader import Reader

EVERY_BLOCK = ("sparse_step", "dense_blocks")
"""Words without a key: all blocks have experts."""

EXPERTS = "model.layers.{block}.mlp.experts"


def _block(reader: Reader, block: int) -> Block:
    return with_gated_expert(reader, block, mixer_of(reader, block))


FAMILY = replace(
    QWEN3_5,
    model_type="qwen3_5_moe_text",
    keys={word: key for word, key in QWEN3_5.keys.items() if word not in EVERY_BLOCK},
    defaults={**QWEN3_5.defaults, "key_value_heads": 2, "experts": 256, "used": 8},
    block=_block,
    stacked=(
        Stacked(f"{EXPERTS}.gate_up_proj", ("expert_gate", "expert_up")),
        Stacked(f"{EXPERTS}.down_proj", ("expert_down",)),
    ),
)
