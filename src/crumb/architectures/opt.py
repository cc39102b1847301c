"""opt: learned positions from the third row of their table, biases, relu."""

from crumb.architectures.block import SEQUENTIAL, STREAM_NORMED_AFTER
from crumb.architectures.configuration import Configuration, refuse
from crumb.architectures.family import LAYER, Family, no_rotation

BEFORE, LAST = "do_layer_norm_before", "has_final_norm"
PREFIX = "model.decoder.layers.{block}."
ROLES = ("query", "key", "value", "output", "up", "down")


def _restate(configuration: Configuration) -> Configuration:
    hidden = configuration.get("hidden_size")
    if configuration.get("word_embed_proj_dim") not in (None, hidden):
        raise refuse("word_embed_proj_dim", f"{hidden}, the hidden size", "another")
    last = configuration.get(BEFORE, True) and not configuration.get("_remove_final_layer_norm")
    return {**configuration, LAST: bool(last)}


FAMILY = Family(
    model_type="opt",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_hidden_layers",
        "heads": "num_attention_heads",
        "feed_forward": "ffn_dim",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "activation": "activation_function",
    },
    defaults={
        "activation": "relu",
        "epsilon": 1e-5,
        "positions": 2048,
        BEFORE: True,
        "enable_bias": True,
    },
    tensors={
        "embedding": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "attention_norm": PREFIX + "self_attn_layer_norm",
        "query": PREFIX + "self_attn.q_proj",
        "key": PREFIX + "self_attn.k_proj",
        "value": PREFIX + "self_attn.v_proj",
        "output": PREFIX + "self_attn.out_proj",
        "mlp_norm": PREFIX + "final_layer_norm",
        "up": PREFIX + "fc1",
        "down": PREFIX + "fc2",
        "final_norm": "model.decoder.final_layer_norm",
        "head": "lm_head",
    },
    biases=dict.fromkeys(ROLES, "enable_bias"),
    optional={"final_norm": LAST},
    norm=LAYER,
    block=lambda reader, _: SEQUENTIAL if reader.flag(BEFORE) else STREAM_NORMED_AFTER,
    kinds=no_rotation,
    restate=_restate,
    first_position=2,
    tied=True,
)
