"""glm4_moe: GLM-4.5: half of each head rotating, experts of DeepSeek's routing, a shared one."""

from dataclasses import replace

from crumb.architectures.block import Block, FeedForward, Sum
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import QWEN_TENSORS, Routing, mixture, sequential
from crumb.architectures.reader import Reader

PARTS = ("gate", "up", "down")


def _block(reader: Reader, block: int) -> Block:
    if block < reader.size("dense_first", lowest=0):
        return sequential(FeedForward())
    routing = Routing(
        "sigmoid",
        "sum" if reader.flag("norm_topk_prob") else "none",
        biased=True,
        groups=reader.size("groups"),
        top_groups=reader.size("top_groups"),
        group_best=2,
        floor=1e-20,
        factor=reader.number("factor"),
    )
    inner = reader.size("expert_inner") * reader.size("shared")
    shared = FeedForward(output="shared", prefix="shared_", inner=inner)
    return sequential(mixture(reader, routing), shared, Sum("mlp", "shared", "mlp"))


KEYS: dict[str, str | tuple[str, ...]] = {
    "experts": ("n_routed_experts", "num_local_experts"),
    "used": "num_experts_per_tok",
    "expert_inner": "moe_intermediate_size",
    "shared": "n_shared_experts",
    "dense_first": "first_k_dense_replace",
    "groups": "n_group",
    "top_groups": "topk_group",
    "factor": "routed_scaling_factor",
}
FAMILY = replace(
    LLAMA,
    model_type="glm4_moe",
    keys={**LLAMA.keys, **KEYS},
    defaults={**LLAMA.defaults, "key_value_heads": 8, "epsilon": 1e-5, "positions": 131072}
    | {"rotary_share": 0.5, "experts": 128, "used": 8, "expert_inner": 1408, "shared": 1}
    | {"dense_first": 1, "groups": 1, "top_groups": 1, "factor": 1.0, "norm_topk_prob": True},
    tensors={
        **LLAMA.tensors,
        **QWEN_TENSORS,
        "router_choice": "model.layers.{block}.mlp.gate.e_score_correction_bias",
        **{f"shared_{p}": f"model.layers.{{block}}.mlp.shared_experts.{p}_proj" for p in PARTS},
        "query_norm": "model.layers.{block}.self_attn.q_norm",
        "key_norm": "model.layers.{block}.self_attn.k_norm",
    },
    biases=dict.fromkeys(("query", "key", "value"), "attention_bias"),
    optional={"query_norm": "use_qk_norm", "key_norm": "use_qk_norm"},
    block=_block,
)
