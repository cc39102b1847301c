"""deepseek_v3: DeepSeek V3 and R1: latent attention, experts in groups, a shared one."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.latent import LATENT_KEYS, LATENT_TENSORS, latent_attention
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import SHARED_KEYS, SHARED_TENSORS, sigmoid_routing, with_shared
from crumb.architectures.reader import Reader

OWN = ("query", "key", "value")
UNREAD = ("key_value_heads", "rotary_share")


def _block(reader: Reader, block: int) -> Block:
    attention = latent_attention(reader, reader.flag("rope_interleave"))
    return with_shared(reader, block, sigmoid_routing(reader), attention)


FAMILY = replace(
    LLAMA,
    model_type="deepseek_v3",
    keys={
        **{word: key for word, key in LLAMA.keys.items() if word not in UNREAD},
        **LATENT_KEYS,
        **SHARED_KEYS,
    },
    defaults={**LLAMA.defaults, "positions": 4096, "rank": 512, "query_rank": 1536, "plain": 128}
    | {"head_dim": 64, "rotary_dimensions": 64, "value_dim": 128, "experts": 256, "used": 8}
    | {"expert_inner": 2048, "shared": 1, "dense_first": 3, "groups": 8, "top_groups": 4}
    | {"factor": 2.5, "norm_topk_prob": True, "rope_interleave": True},
    tensors={
        **{role: name for role, name in LLAMA.tensors.items() if role not in OWN},
        **LATENT_TENSORS,
        **SHARED_TENSORS,
    },
    rotary="interleaved",
    biases=dict.fromkeys(("query_down", "latent_down", "output"), "attention_bias"),
    block=_block,
)
