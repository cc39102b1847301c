"""glm4: GLM-4 of 2025: norms before and after, half of each head rotating in pairs."""

from dataclasses import replace

from crumb.architectures.block import NORMED_BEFORE_AND_AFTER
from crumb.architectures.llama import FAMILY as LLAMA

PARTS = ("gate", "up")

FAMILY = replace(
    LLAMA,
    model_type="glm4",
    defaults={
        **LLAMA.defaults,
        "key_value_heads": 2,
        "head_dim": 128,
        "epsilon": 1.5625e-7,
        "positions": 131072,
        "rotary_share": 0.5,
        "attention_bias": True,
    },
    tensors={
        **{role: name for role, name in LLAMA.tensors.items() if role not in PARTS},
        "gate_up": "model.layers.{block}.mlp.gate_up_proj",
        "attention_post_norm": "model.layers.{block}.post_self_attn_layernorm",
        "mlp_post_norm": "model.layers.{block}.post_mlp_layernorm",
    },
    biases=dict.fromkeys(("query", "key", "value"), "attention_bias"),
    block=NORMED_BEFORE_AND_AFTER,
    rotary="interleaved",
)
