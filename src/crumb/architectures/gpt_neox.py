"""gpt_neox: GPT-NeoX and Pythia."""

from crumb.architectures.family import Configuration, Family, FusedQkv


def _rotary_dimensions(configuration: Configuration, head_dim: int) -> int:
    given = configuration.get("rope_parameters") or {}
    share = given.get("partial_rotary_factor", configuration.get("rotary_pct", 0.25))
    return int(head_dim * float(share))


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
    },
    defaults={"activation": "gelu", "attention_bias": True},
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
    norm="layer",
    gated=False,
    fused=FusedQkv(),
    rotary_dimensions=_rotary_dimensions,
    parallel=lambda configuration: bool(configuration.get("use_parallel_residual", True)),
)
