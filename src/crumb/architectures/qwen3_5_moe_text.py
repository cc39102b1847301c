"""qwen3_5_moe_text: Qwen3.5 with experts, which its files hold stacked, and one that all use."""

from dataclasses import replace

from crumb.architectures.family import Stacked
from crumb.architectures.qwen3_5_text import TENSORS
from crumb.architectures.qwen3_next import FAMILY as QWEN3_NEXT

EVERY_BLOCK = ("sparse_step", "dense_blocks")
"""Words without a key: all blocks have experts."""

EXPERTS = "model.layers.{block}.mlp.experts"

FAMILY = replace(
    QWEN3_NEXT,
    model_type="qwen3_5_moe_text",
    keys={word: key for word, key in QWEN3_NEXT.keys.items() if word not in EVERY_BLOCK},
    defaults={**QWEN3_NEXT.defaults, "experts": 256, "used": 8},
    tensors=TENSORS,
    stacked=(
        Stacked(f"{EXPERTS}.gate_up_proj", ("expert_gate", "expert_up")),
        Stacked(f"{EXPERTS}.down_proj", ("expert_down",)),
    ),
)
