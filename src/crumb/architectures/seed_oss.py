"""seed_oss: Seed-OSS 36B: llama with biases on query, key and value, heads wider than the model."""

from dataclasses import replace

from crumb.architectures.llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    model_type="seed_oss",
    defaults={**LLAMA.defaults, "key_value_heads": 8, "head_dim": 128, "positions": 524288}
    | {"attention_bias": True},
    biases={**LLAMA.biases, "output": "attention_out_bias"},
)
