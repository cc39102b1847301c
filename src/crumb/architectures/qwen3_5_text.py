"""qwen3_5_text: Qwen3.5 without its eyes: Qwen3-Next with one MLP and separate projections."""

from dataclasses import replace

from crumb.architectures.block import Block, FeedForward
from crumb.architectures.mixture import QWEN_KEYS, sequential
from crumb.architectures.qwen3_next import DELTA, mixer_of
from crumb.architectures.qwen3_next import FAMILY as QWEN3_NEXT
from crumb.architectures.reader import Reader

PROJECTIONS = {"qkv": "in_proj_qkv", "gate": "in_proj_z", "share": "in_proj_b", "step": "in_proj_a"}
JOINED, OF_EXPERTS = ("delta_in", "delta_paces"), ("expert", "router", "shared")

TENSORS = {
    **{role: name for role, name in QWEN3_NEXT.tensors.items() if role not in JOINED},
    **{f"delta_{role}": f"{DELTA}{name}" for role, name in PROJECTIONS.items()},
}
"""Those of its experts too, where it has some."""


def _block(reader: Reader, block: int) -> Block:
    return sequential(FeedForward(), attention=mixer_of(reader, block))


FAMILY = replace(
    QWEN3_NEXT,
    model_type="qwen3_5_text",
    keys={
        word: key
        for word, key in QWEN3_NEXT.keys.items()
        if word not in (*QWEN_KEYS, "shared_inner")
    },
    defaults={**QWEN3_NEXT.defaults, "key_value_heads": 4},
    tensors={role: name for role, name in TENSORS.items() if not role.startswith(OF_EXPERTS)},
    block=_block,
)
