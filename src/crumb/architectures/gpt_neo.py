"""gpt_neo: GPT-Neo, learned positions, unscaled attention, local windows in alternate blocks."""

from crumb.architectures.configuration import as_integer, check_kinds, repeat_kinds
from crumb.architectures.family import LAYER, BlockKind, Family, Multipliers
from crumb.architectures.reader import Reader

KINDS = ("global", "local")


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    configuration, blocks = reader.configuration, reader.sizes.blocks
    window = as_integer(configuration.get("window_size", 256), "window_size")
    kinds, key = configuration.get("attention_layers"), "attention_layers"
    if kinds is None:
        pattern, key = configuration.get("attention_types"), "attention_types"
        kinds = repeat_kinds([[KINDS, 12]] if pattern is None else pattern, key, blocks)
    kinds = check_kinds(kinds, key, blocks, KINDS)
    return tuple(BlockKind(None, window if kind == "local" else None) for kind in kinds)


FAMILY = Family(
    model_type="gpt_neo",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_layers",
        "heads": "num_heads",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "epsilon": "layer_norm_epsilon",
        "activation": "activation_function",
    },
    defaults={
        "activation": "gelu_new",
        "epsilon": 1e-5,
        "feed_forward": None,
        "positions": 2048,
    },
    tensors={
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "attention_norm": "transformer.h.{block}.ln_1",
        "query": "transformer.h.{block}.attn.attention.q_proj",
        "key": "transformer.h.{block}.attn.attention.k_proj",
        "value": "transformer.h.{block}.attn.attention.v_proj",
        "output": "transformer.h.{block}.attn.attention.out_proj",
        "mlp_norm": "transformer.h.{block}.ln_2",
        "up": "transformer.h.{block}.mlp.c_fc",
        "down": "transformer.h.{block}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    biases={"output": True, "up": True, "down": True},
    norm=LAYER,
    kinds=_kinds,
    multipliers=lambda reader: Multipliers(attention=1.0),
    tied=True,
)
