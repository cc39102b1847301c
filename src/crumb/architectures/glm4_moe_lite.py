"""glm4_moe_lite: GLM-4.7 Flash: deepseek_v3 of another size, its dense blocks in a list."""

from dataclasses import replace

from crumb.architectures.configuration import Configuration, as_integer, check_kinds, refuse
from crumb.architectures.deepseek_v3 import FAMILY as DEEPSEEK

LISTED, KINDS = "mlp_layer_types", ("dense", "sparse")


def _restate(configuration: Configuration) -> Configuration:
    """How many blocks are dense before the first with experts, as deepseek_v3 says it."""
    kinds, dense = configuration.get(LISTED), 1
    if kinds is not None:
        blocks = as_integer(configuration.get("num_hidden_layers"), "num_hidden_layers", 1024)
        listed = check_kinds(kinds, LISTED, blocks, KINDS)
        dense = listed.count(KINDS[0])
        if listed != sorted(listed):
            raise refuse(LISTED, "dense blocks before all sparse ones", kinds)
    return {**configuration, "first_k_dense_replace": dense}


FAMILY = replace(
    DEEPSEEK,
    model_type="glm4_moe_lite",
    defaults={**DEEPSEEK.defaults, "positions": 202752, "epsilon": 1e-5, "query_rank": 768}
    | {"plain": 192, "value_dim": 256, "experts": 64, "used": 4, "expert_inner": 1536}
    | {"groups": 1, "top_groups": 1, "factor": 1.8},
    restate=_restate,
)
