"""bloom: slopes in place of positions, a norm behind the embedding, biases everywhere."""

from dataclasses import replace

from crumb.architectures.block import (
    SEQUENTIAL,
    Added,
    Block,
    FeedForward,
    Normed,
    SelfAttention,
)
from crumb.architectures.family import LAYER, BlockKind
from crumb.architectures.gpt_neox import FAMILY as NEOX
from crumb.architectures.reader import Reader
from crumb.operations.places import Slopes

BLOCK = "transformer.h.{block}."
NAMES = {
    **{role: BLOCK + name.split("{block}.")[-1] for role, name in NEOX.tensors.items()},
    "qkv": BLOCK + "self_attention.query_key_value",
    "output": BLOCK + "self_attention.dense",
    "embedding": "transformer.word_embeddings",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
ON_NORMED: Block = (
    Normed("attention_norm"),
    SelfAttention(),
    Added("attended", left="normed"),
    Normed("mlp_norm"),
    FeedForward(),
    Added("mlp", left="normed"),
)


def _block(reader: Reader, _: int) -> Block:
    adds_to_normed = reader.flag("apply_residual_connection_post_layernorm")
    return ON_NORMED if adds_to_normed else SEQUENTIAL


FAMILY = replace(
    NEOX,
    model_type="bloom",
    keys={
        "hidden": ("n_embed", "hidden_size"),
        "blocks": ("n_layer", "num_hidden_layers"),
        "heads": ("n_head", "num_attention_heads"),
        "vocabulary": "vocab_size",
        "positions": "seq_length",
        "epsilon": "layer_norm_epsilon",
    },
    defaults={"activation": "gelu_pytorch_tanh", "epsilon": 1e-5, "positions": 2048},
    tensors={**NAMES, "embedding_norm": "transformer.word_embeddings_layernorm"},
    biases=dict.fromkeys(("qkv", "output", "up", "down"), True),
    norm=LAYER,
    block=_block,
    kinds=lambda reader: (BlockKind(None, slopes=Slopes()),) * reader.sizes.blocks,
    tied=True,
)
