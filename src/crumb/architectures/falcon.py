"""falcon: attention and MLP in parallel, queries and keys fused by key-value head."""

from dataclasses import replace

from crumb.architectures.block import PARALLEL, PARALLEL_OF_ONE_NORM, SEQUENTIAL, Block, Normed
from crumb.architectures.configuration import Configuration, refuse
from crumb.architectures.gpt_neox import FAMILY as NEOX
from crumb.architectures.reader import Reader

OLD = {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_embed": "hidden_size"}
BLOCK = "transformer.h.{block}."
NAMES = {
    **{role: BLOCK + name.split("{block}.")[-1] for role, name in NEOX.tensors.items()},
    "ln_attn": BLOCK + "ln_attn",
    "ln_mlp": BLOCK + "ln_mlp",
    "qkv": BLOCK + "self_attention.query_key_value",
    "output": BLOCK + "self_attention.dense",
    "embedding": "transformer.word_embeddings",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
OWN_NORMS = (Normed("ln_attn"), PARALLEL[1], Normed("ln_mlp"), *PARALLEL[3:])


def _restate(configuration: Configuration) -> Configuration:
    if configuration.get("alibi", False):
        raise refuse("alibi", "false: slopes on scores are not read", True)
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
    tensors=NAMES,
    biases=dict.fromkeys(("qkv", "output", "up", "down"), "bias"),
    block=_block,
    restate=_restate,
    tied=True,
)
