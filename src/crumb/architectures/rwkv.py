"""rwkv: RWKV-4, recurrent: a state of constant size in place of keys and values."""

from crumb.architectures.configuration import LIMIT
from crumb.architectures.family import LAYER, Family, no_rotation
from crumb.architectures.reader import Reader
from crumb.architectures.time_mix import MIXED_BLOCK

ATTENTION, MLP = "rwkv.blocks.{block}.attention.", "rwkv.blocks.{block}.feed_forward."


def _epsilon(reader: Reader, role: str, block: int | None) -> float:
    """transformers halves the stream now and then; a norm only sees that by its epsilon."""
    every, last = reader.size("halved_every", lowest=-LIMIT), role == "final_norm"
    before = reader.sizes.blocks if last else block or 0
    halved = before // every if every > 0 else 0
    return (1e-5 if last else reader.sizes.epsilon) * 4.0**halved


FAMILY = Family(
    model_type="rwkv",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_hidden_layers",
        "inner": "attention_hidden_size",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "epsilon": "layer_norm_epsilon",
        "halved_every": "rescale_every",
    },
    defaults={
        "heads": 1,
        "inner": None,
        "feed_forward": None,
        "positions": LIMIT,  # of its state; context_length is that of its training
        "epsilon": 1e-5,
        "halved_every": 6,
        "activation": "relu2",
    },
    tensors={
        "embedding": "rwkv.embeddings",
        "embedding_norm": "rwkv.blocks.0.pre_ln",
        "attention_norm": "rwkv.blocks.{block}.ln1",
        **{role: f"{ATTENTION}{role}" for role in ("key", "value", "receptance", "output")},
        **{f"{role}_mix": f"{ATTENTION}time_mix_{role}" for role in ("key", "value", "receptance")},
        "decay": f"{ATTENTION}time_decay",
        "bonus": f"{ATTENTION}time_first",
        "mlp_norm": "rwkv.blocks.{block}.ln2",
        "up": f"{MLP}key",
        "up_mix": f"{MLP}time_mix_key",
        "gate": f"{MLP}receptance",
        "gate_mix": f"{MLP}time_mix_receptance",
        "down": f"{MLP}value",
        "final_norm": "rwkv.ln_out",
        "head": "head",
    },
    norm=LAYER,
    epsilon=_epsilon,
    block=MIXED_BLOCK,
    kinds=no_rotation,
)
