"""rwkv6: RWKV-6, whose tokens decide how they are shifted and how its features fade."""

from crumb.architectures.configuration import LIMIT
from crumb.architectures.drifting_mix import DRIFTING, DRIFTING_BLOCK, finch_widths
from crumb.architectures.family import LAYER, Family, Stacked, no_rotation

ATTENTION, MLP = "rwkv.blocks.{block}.attention.", "rwkv.blocks.{block}.feed_forward."
LETTERS = {"pace": "w", "receptance": "r", "key": "k", "value": "v", "pass": "g", "mix": "x"}

FAMILY = Family(
    model_type="rwkv6",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_hidden_layers",
        "wkv_dim": "head_size",
        "head_divisor": "head_size_divisor",
        "head_epsilon": "head_norm_eps",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "epsilon": "layer_norm_epsilon",
        "mix_rank": "lora_rank_tokenshift",
        "pace_rank": "lora_rank_decay",
        "halved_every": "halved_every",
    },
    defaults={"heads": 1, "positions": LIMIT, "epsilon": 1e-5, "activation": "relu2"}
    | {"wkv_dim": 64, "head_divisor": 8, "head_epsilon": None, "halved_every": 0}
    | {"mix_rank": None, "pace_rank": None},  # by the width
    tensors={
        "embedding": "rwkv.embeddings",
        "embedding_norm": "rwkv.blocks.0.pre_ln",
        "attention_norm": "rwkv.blocks.{block}.ln1",
        **{f"{role}_mix": f"{ATTENTION}time_maa_{LETTERS[role]}" for role in (*DRIFTING, "mix")},
        "mix_down": f"{ATTENTION}time_maa_w1",
        "mix_up": f"{ATTENTION}time_maa_w2.{{{{expert}}}}",
        "decay": f"{ATTENTION}time_decay",
        "decay_down": f"{ATTENTION}time_decay_w1",
        "decay_up": f"{ATTENTION}time_decay_w2",
        "bonus": f"{ATTENTION}time_faaaa",
        **{role: f"{ATTENTION}{role}" for role in ("receptance", "key", "value", "output")},
        "pass": f"{ATTENTION}gate",
        "mixed_norm": f"{ATTENTION}ln_x",
        "mlp_norm": "rwkv.blocks.{block}.ln2",
        "up": f"{MLP}key",
        "up_mix": f"{MLP}time_maa_k",
        "gate": f"{MLP}receptance",
        "gate_mix": f"{MLP}time_maa_r",
        "down": f"{MLP}value",
        "final_norm": "rwkv.ln_out",
        "head": "head",
    },
    norm=LAYER,
    stacked=(Stacked(f"{ATTENTION}time_maa_w2", ("mix_up",), transposed=True),),
    transposed=("mix_down", "decay_down", "decay_up"),
    block=DRIFTING_BLOCK,
    kinds=no_rotation,
    restate=finch_widths,
)
