"""codegen: GPT-J with query, value and key fused in four slices, as its training shards were."""

from dataclasses import replace

from crumb.architectures.family import Fused
from crumb.architectures.gptj import FAMILY as GPTJ

QKV = ("query", "key", "value")

FAMILY = replace(
    GPTJ,
    model_type="codegen",
    tensors={
        **{role: name for role, name in GPTJ.tensors.items() if role not in QKV},
        "qkv": "transformer.h.{block}.attn.qkv_proj",
    },
    fused=Fused(order=("query", "value", "key"), outer=4),
)
