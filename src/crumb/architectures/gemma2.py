"""gemma2: gemma with norms after attention and MLP too, soft caps, and every other window."""

import math
from dataclasses import replace

from crumb.architectures.block import NORMED_BEFORE_AND_AFTER
from crumb.architectures.configuration import read_window
from crumb.architectures.family import BlockKind, Multipliers, as_it_is
from crumb.architectures.gemma import FAMILY as GEMMA
from crumb.architectures.kinds import sliding_blocks
from crumb.architectures.reader import Reader


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    window, rope = read_window(reader.configuration, "sliding_window", 4096), reader.rope()
    sliding = sliding_blocks(reader, lambda block: block % 2 == 0)
    return tuple(BlockKind(rope, window if each else None) for each in sliding)


def caps_and_scales(reader: Reader) -> Multipliers:
    """The embedding's scale, that of scores, and the caps of scores and logits."""
    return Multipliers(
        embedding=math.sqrt(reader.sizes.hidden),
        attention=reader.number("query_scale") ** -0.5,
        score_cap=reader.optional_number("score_cap"),
        logit_cap=reader.optional_number("logit_cap"),
    )


FAMILY = replace(
    GEMMA,
    model_type="gemma2",
    keys={
        **GEMMA.keys,
        "activation": "hidden_activation",
        "query_scale": "query_pre_attn_scalar",
        "score_cap": "attn_logit_softcapping",
        "logit_cap": "final_logit_softcapping",
    },
    defaults={
        **GEMMA.defaults,
        "key_value_heads": 4,
        "query_scale": 256,
        "score_cap": 50.0,
        "logit_cap": 30.0,
    },
    tensors={
        **GEMMA.tensors,
        "attention_post_norm": "model.layers.{block}.post_attention_layernorm",
        "mlp_norm": "model.layers.{block}.pre_feedforward_layernorm",
        "mlp_post_norm": "model.layers.{block}.post_feedforward_layernorm",
    },
    block=NORMED_BEFORE_AND_AFTER,
    kinds=_kinds,
    multipliers=caps_and_scales,
    restate=as_it_is,
)
