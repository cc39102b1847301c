"""falcon: attention and MLP in parallel, queries and keys fused by key-value head."""

from dataclasses import replace

from crumb.architectures.block import PARALLEL, PARALLEL_OF_ONE_NORM, SEQUENTIAL, Block, Normed
from crumb.architectures.bloom import BLOCK, NAMES
from crumb.architectures.configuration import Configuration
from crumb.architectures.family import BlockKind, alike
from crumb.architectures.gpt_neox import FAMILY as NEOX
from crumb.architectures.reader import Reader
from crumb.operations.places import Slopes

OLD = {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_embed": "hidden_size"}
OWN_NORMS = (Normed("ln_attn"), PARALLEL[1], Normed("ln_mlp"), *PARALLEL[3:])


def _restate(configuration: Configuration) -> Configuration:
    again = {OLD.get(key, key): value for key, value in configuration.items()}
    if not again.get("new_decoder_architecture", False):
        again["num_kv_heads"] = 1 if again.get("multi_query", True) else None
    return again


def _block(reader: Reader, _: int) -> Block:
    if not reader.flag("parallel_attn"):
        return SEQUENTIAL
    two = reader.configuration.get("num_ln_in_parallel_attn") in (None, 2)
    if reader.flag("new_decoder_architecture") and two:
        return OWN_NORMS
    return PARALLEL_OF_ONE_NORM


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    """Slopes are added before scores are scaled, and as rounded as the training had them."""
    if not reader.flag("alibi"):
        return alike(reader)
    slopes = Slopes(factor=reader.sizes.head_dim**-0.5, rounded=True)
    return (BlockKind(None, slopes=slopes),) * reader.sizes.blocks


FAMILY = replace(
    NEOX,
    model_type="falcon",
    keys={
        **{word: key for word, key in NEOX.keys.items() if word != "rotary_share"},
        "key_value_heads": "num_kv_heads",
        "feed_forward": "ffn_hidden_size",
        "epsilon": "layer_norm_epsilon",
        "activation": "activation",
        "theta": "rope_theta",
    },
    defaults={**NEOX.defaults, "feed_forward": None, "rotary_share": 1.0, "parallel_attn": True},
    tensors={**NAMES, "ln_attn": BLOCK + "ln_attn", "ln_mlp": BLOCK + "ln_mlp"},
    biases=dict.fromkeys(("qkv", "output", "up", "down"), "bias"),
    block=_block,
    kinds=_kinds,
    restate=_restate,
    tied=True,
)
