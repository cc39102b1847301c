"""gpt_neox: GPT-NeoX and Pythia."""

from crumb.architectures.block import PARALLEL, SEQUENTIAL
from crumb.architectures.family import LAYER, Family

FAMILY = Family(
    model_type="gpt_neox",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_hidden_layers",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "epsilon": "layer_norm_eps",
        "activation": "hidden_act",
        "theta": ("rotary_emb_base", "rope_theta"),
        "rope": ("rope_scaling", "rope_parameters"),
        "rotary_share": "rotary_pct",
    },
    defaults={
        "activation": "gelu",
        "epsilon": 1e-5,
        "positions": 2048,
        "theta": 10000.0,
        "rotary_share": 0.25,
        "attention_bias": True,
        "use_parallel_residual": True,
    },
    tensors={
        "embedding": "gpt_neox.embed_in",
        "attention_norm": "gpt_neox.layers.{block}.input_layernorm",
        "qkv": "gpt_neox.layers.{block}.attention.query_key_value",
        "output": "gpt_neox.layers.{block}.attention.dense",
        "mlp_norm": "gpt_neox.layers.{block}.post_attention_layernorm",
        "up": "gpt_neox.layers.{block}.mlp.dense_h_to_4h",
        "down": "gpt_neox.layers.{block}.mlp.dense_4h_to_h",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    },
    biases={"qkv": "attention_bias", "output": "attention_bias", "up": True, "down": True},
    norm=LAYER,
    block=lambda reader, _: PARALLEL if reader.flag("use_parallel_residual") else SEQUENTIAL,
)
