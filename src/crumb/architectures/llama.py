"""llama: LLaMA 1, 2 and 3 and everything that copied it."""

from crumb.architectures.family import Family

FAMILY = Family(
    model_type="llama",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_hidden_layers",
        "heads": "num_attention_heads",
        "key_value_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "epsilon": "rms_norm_eps",
        "activation": "hidden_act",
        "theta": "rope_theta",
        "rope": ("rope_scaling", "rope_parameters"),
        "rotary_share": "partial_rotary_factor",
    },
    defaults={
        "key_value_heads": None,
        "head_dim": None,
        "activation": "silu",
        "epsilon": 1e-6,
        "positions": 2048,
        "theta": 10000.0,
        "rotary_share": 1.0,
    },
    tensors={
        "embedding": "model.embed_tokens",
        "attention_norm": "model.layers.{block}.input_layernorm",
        "query": "model.layers.{block}.self_attn.q_proj",
        "key": "model.layers.{block}.self_attn.k_proj",
        "value": "model.layers.{block}.self_attn.v_proj",
        "output": "model.layers.{block}.self_attn.o_proj",
        "mlp_norm": "model.layers.{block}.post_attention_layernorm",
        "gate": "model.layers.{block}.mlp.gate_proj",
        "up": "model.layers.{block}.mlp.up_proj",
        "down": "model.layers.{block}.mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
    biases={
        "query": "attention_bias",
        "key": "attention_bias",
        "value": "attention_bias",
        "output": "attention_bias",
        "gate": "mlp_bias",
        "up": "mlp_bias",
        "down": "mlp_bias",
    },
)
