"""deepseek_v2: DeepSeek V2 and V2-Lite: deepseek_v3 whose router has a softmax and no bias."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.configuration import refuse
from crumb.architectures.deepseek_v3 import FAMILY as DEEPSEEK
from crumb.architectures.latent import latent_attention
from crumb.architectures.mixture import Routing, with_shared
from crumb.architectures.reader import Reader

METHODS = ("greedy", "group_limited_greedy")


def _block(reader: Reader, block: int) -> Block:
    key, method = reader.find("method")
    if method not in METHODS:
        raise refuse(key, f"one of {', '.join(METHODS)}", method)
    routing = Routing("softmax", factor=reader.number("factor"))
    if method == METHODS[1]:
        groups, best = reader.size("groups"), reader.size("top_groups")
        routing = replace(routing, groups=groups, top_groups=best)
    return with_shared(reader, block, routing, latent_attention(reader))


FAMILY = replace(
    DEEPSEEK,
    model_type="deepseek_v2",
    keys={**DEEPSEEK.keys, "method": "topk_method"},
    defaults={**DEEPSEEK.defaults, "positions": 2048, "experts": 64, "expert_inner": 1407}
    | {"shared": 2, "dense_first": 0, "groups": None, "top_groups": None, "factor": 1.0}
    | {"used": None, "method": "greedy"},
    tensors={role: name for role, name in DEEPSEEK.tensors.items() if role != "router_choice"},
    block=_block,
)
