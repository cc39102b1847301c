"""rwkv7: RWKV-7 as flash-linear-attention writes it: a delta rule whose features fade by token."""

from dataclasses import replace

from crumb.architectures.configuration import LIMIT, read_flag
from crumb.architectures.family import LAYER, LAYER_WITHOUT_BIAS, Family, no_rotation
from crumb.architectures.wkv_mix import DELTA_MIXED_BLOCK, widths_told

ATTENTION, MLP = "model.layers.{block}.attn.", "model.layers.{block}.ffn."
MIXES = {"receptance": "r", "pace": "w", "key": "k", "value": "v", "share": "a", "pass": "g"}
RANKS = {"pace": "decay", "share": "a", "first": "v", "pass": "gate"}
VECTORS = {"direction": "k_k", "renewal": "k_a", "bonus": "r_k"}
LOW_RANKS = {"pace": "w", "share": "a", "first": "v", "pass": "g"}

FAMILY = Family(
    model_type="rwkv7",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_hidden_layers",
        "wkv_dim": "head_dim",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "epsilon": "norm_eps",
        "head_epsilon": "head_norm_eps",
        "activation": "hidden_act",
        **{f"{role}_rank": f"{name}_low_rank_dim" for role, name in RANKS.items()},
    },
    defaults={"heads": 1, "positions": LIMIT, "epsilon": 1e-5, "activation": "sqrelu"}
    | {"wkv_dim": 64, "pace_rank": 64, "share_rank": 64, "first_rank": 16, "pass_rank": 128}
    | {"head_epsilon": None, "norm_first": True},
    tensors={
        "embedding": "model.embeddings",
        "embedding_norm": "model.layers.0.pre_norm",
        "attention_norm": "model.layers.{block}.attn_norm",
        **{f"{role}_mix": f"{ATTENTION}x_{name}" for role, name in MIXES.items()},
        **{role: f"{ATTENTION}{role[0]}_proj" for role in ("receptance", "key", "value", "output")},
        **{f"{role}_down": f"{ATTENTION}{name}_lora.lora.0" for role, name in LOW_RANKS.items()},
        **{f"{role}_up": f"{ATTENTION}{name}_lora.lora.2" for role, name in LOW_RANKS.items()},
        **{role: f"{ATTENTION}{name}" for role, name in VECTORS.items()},
        "mixed_norm": f"{ATTENTION}g_norm",
        "mlp_norm": "model.layers.{block}.ffn_norm",
        "up_mix": f"{MLP}x_k",
        "up": f"{MLP}key",
        "down": f"{MLP}value",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
    biases={"pace_up": True, "share_up": True, "first_up": True},
    optional={"embedding_norm": "norm_first"},
    joined={f"{ATTENTION}x_x": tuple(f"{role}_mix" for role in MIXES)},
    norm=LAYER,
    block=DELTA_MIXED_BLOCK,
    kinds=no_rotation,
    restate=widths_told,
    of_configuration=lambda family, configuration: (
        family
        if read_flag(configuration, "norm_bias", True)
        else replace(family, norm=LAYER_WITHOUT_BIAS)
    ),
)
