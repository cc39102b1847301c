"""lfm2: LFM2, gated short convolutions in most blocks, attention with head norms in some."""

from dataclasses import replace

from crumb.architectures.block import SEQUENTIAL, Block
from crumb.architectures.kinds import attending_blocks
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import block_list
from crumb.architectures.reader import Reader
from crumb.architectures.short_convolution import CONVOLVED, restate

ROLES = ("gates", "convolution", "mixer_output")


def _block(reader: Reader, block: int) -> Block:
    attending = block_list(reader, "attending")
    usual = [attending is None or each in attending for each in range(reader.sizes.blocks)]
    return SEQUENTIAL if attending_blocks(reader, "conv", usual)[block] else CONVOLVED


FAMILY = replace(
    LLAMA,
    model_type="lfm2",
    keys={**LLAMA.keys, "epsilon": "norm_eps", "taps": "conv_L_cache"}
    | {"attending": "full_attn_idxs"},
    defaults={**LLAMA.defaults, "key_value_heads": 8, "epsilon": 1e-5}
    | {"positions": 128000, "theta": 1e6, "taps": 3, "attending": None},
    tensors={**LLAMA.tensors}
    | {
        "attention_norm": "model.layers.{block}.operator_norm",
        "query_norm": "model.layers.{block}.self_attn.q_layernorm",
        "key_norm": "model.layers.{block}.self_attn.k_layernorm",
        "output": "model.layers.{block}.self_attn.out_proj",
        "gates": "model.layers.{block}.conv.in_proj",
        "convolution": "model.layers.{block}.conv.conv",
        "mixer_output": "model.layers.{block}.conv.out_proj",
        "mlp_norm": "model.layers.{block}.ffn_norm",
        "gate": "model.layers.{block}.feed_forward.w1",
        "up": "model.layers.{block}.feed_forward.w3",
        "down": "model.layers.{block}.feed_forward.w2",
        "final_norm": "model.embedding_norm",
    },
    biases=dict.fromkeys(ROLES, "conv_bias"),
    block=_block,
    restate=restate,
    tied=True,
)
