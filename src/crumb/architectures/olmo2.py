"""olmo2: llama that normalises what a block adds, not what it reads, and all heads together."""

from dataclasses import replace

from crumb.architectures.block import NORMED_AFTER
from crumb.architectures.family import HeadNorm
from crumb.architectures.llama import FAMILY as LLAMA

BEFORE = ("attention_norm", "mlp_norm")

FAMILY = replace(
    LLAMA,
    model_type="olmo2",
    defaults={**LLAMA.defaults, "epsilon": 1e-5},
    keys={word: key for word, key in LLAMA.keys.items() if word != "head_dim"},
    tensors={
        **{role: name for role, name in LLAMA.tensors.items() if role not in BEFORE},
        "query_norm": "model.layers.{block}.self_attn.q_norm",
        "key_norm": "model.layers.{block}.self_attn.k_norm",
        "attention_post_norm": "model.layers.{block}.post_attention_layernorm",
        "mlp_post_norm": "model.layers.{block}.post_feedforward_layernorm",
    },
    biases={role: flag for role, flag in LLAMA.biases.items() if flag == "attention_bias"},
    block=NORMED_AFTER,
    head_norm=HeadNorm("rms", whole=True),
)
