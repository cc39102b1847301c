"""glm4_moe: GLM-4.5: half of each head rotating, experts of DeepSeek's routing, a shared one."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import SHARED_KEYS, SHARED_TENSORS, sigmoid_routing, with_shared
from crumb.architectures.reader import Reader


def _block(reader: Reader, block: int) -> Block:
    return with_shared(reader, block, sigmoid_routing(reader))


FAMILY = replace(
    LLAMA,
    model_type="glm4_moe",
    keys={**LLAMA.keys, **SHARED_KEYS},
    defaults={**LLAMA.defaults, "key_value_heads": 8, "epsilon": 1e-5, "positions": 131072}
    | {"rotary_share": 0.5, "experts": 128, "used": 8, "expert_inner": 1408, "shared": 1}
    | {"dense_first": 1, "groups": 1, "top_groups": 1, "factor": 1.0, "norm_topk_prob": True},
    tensors={
        **LLAMA.tensors,
        **SHARED_TENSORS,
        "query_norm": "model.layers.{block}.self_attn.q_norm",
        "key_norm": "model.layers.{block}.self_attn.k_norm",
    },
    biases=dict.fromkeys(("query", "key", "value"), "attention_bias"),
    optional={"query_norm": "use_qk_norm", "key_norm": "use_qk_norm"},
    block=_block,
)
