"""qwen3: qwen2 with a norm of each head's queries and keys in place of biases."""

from dataclasses import replace

from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.qwen2 import FAMILY as QWEN2

FAMILY = replace(
    QWEN2,
    model_type="qwen3",
    defaults={**QWEN2.defaults, "head_dim": 128},
    tensors={
        **QWEN2.tensors,
        "query_norm": "model.layers.{block}.self_attn.q_norm",
        "key_norm": "model.layers.{block}.self_attn.k_norm",
    },
    biases={role: flag for role, flag in LLAMA.biases.items() if flag == "attention_bias"},
)
