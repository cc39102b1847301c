"""codegen: GPT-J with query, value and key fused in four slices, as its training shards were."""

from dataclasses import replace

from crumb.architectures.family import FusedQkv
from crumb.architectures.gptj import FAMILY as GPTJ

FAMILY = replace(
    GPTJ,
    model_type="codegen",
    tensors={
        **{role: GPTJ.tensors[role] for role in GPTJ.tensors if role not in ("query", "key", "value")},
        "qkv": "transformer.h.{block}.attn.qkv_proj",
    },
    fused=FusedQkv(order=("query", "value", "key"), outer=4),
)
