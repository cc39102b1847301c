"""granitemoe: granite with experts, which its files hold stacked."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.family import Stacked
from crumb.architectures.granite import FAMILY as GRANITE
from crumb.architectures.mixture import LOCAL_KEYS, Routing, mixture, sequential
from crumb.architectures.reader import Reader

EXPERTS = "model.layers.{block}.block_sparse_moe"


PARTS = ("gate", "up", "down")


def _block(reader: Reader, _: int) -> Block:
    return sequential(mixture(reader, Routing("none", "softmax")))


FAMILY = replace(
    GRANITE,
    model_type="granitemoe",
    keys={**GRANITE.keys, **LOCAL_KEYS},
    defaults={**GRANITE.defaults, "experts": 8, "used": 2},
    tensors={
        **{role: name for role, name in GRANITE.tensors.items() if role not in PARTS},
        "router": f"{EXPERTS}.router.layer",
        **{f"expert_{role}": f"{EXPERTS}.experts.{{{{expert}}}}.{role}_proj" for role in PARTS},
    },
    biases={role: flag for role, flag in GRANITE.biases.items() if flag == "attention_bias"},
    block=_block,
    stacked=(
        Stacked(f"{EXPERTS}.input_linear.weight", ("expert_gate", "expert_up")),
        Stacked(f"{EXPERTS}.output_linear.weight", ("expert_down",)),
    ),
)
