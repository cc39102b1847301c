"""t5: T5, T5 1.1 and Flan-T5, an encoder and a decoder with relative positions."""

from crumb.architectures.encoder_decoder import DECODER_BLOCK
from crumb.architectures.family import EncoderPart, Family, Multipliers
from crumb.architectures.t5_stacks import (
    CROSS,
    MLP,
    SCALED,
    kinds,
    plain_or_gated,
    restate,
    stack_of,
)

FAMILY = Family(
    model_type="t5",
    keys={
        "hidden": "d_model",
        "blocks": "num_layers",
        "decoder_blocks": "num_decoder_layers",
        "heads": "num_heads",
        "head_dim": "d_kv",
        "feed_forward": "d_ff",
        "vocabulary": "vocab_size",
        "positions": "n_positions",
        "epsilon": "layer_norm_epsilon",
        "activation": MLP,
        "buckets": "relative_attention_num_buckets",
        "farthest": "relative_attention_max_distance",
    },
    defaults={
        "hidden": 512,
        "blocks": 6,
        "decoder_blocks": None,
        "heads": 8,
        "head_dim": 64,
        "feed_forward": 2048,
        "vocabulary": 32128,
        "positions": 512,
        "epsilon": 1e-6,
        "buckets": 32,
        "farthest": 128,
    },
    tensors=stack_of("decoder", 2)
    | {"cross_norm": f"{CROSS}layer_norm", "head": "lm_head"}
    | {
        f"cross_{role}": f"{CROSS}EncDecAttention.{role[0]}"
        for role in ("query", "key", "value", "output")
    },
    encoder=EncoderPart(stack_of("encoder", 1), kinds("encoder")),
    block=DECODER_BLOCK,
    kinds=kinds("decoder"),
    multipliers=lambda reader: Multipliers(
        attention=1.0, head=reader.sizes.hidden**-0.5 if reader.configuration[SCALED] else 1.0
    ),
    restate=restate,
    of_configuration=plain_or_gated,
    tied=True,
)
