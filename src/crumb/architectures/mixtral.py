"""mixtral: Mixtral 8x7B and 8x22B, mistral with experts."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.configuration import as_integer
from crumb.architectures.family import BlockKind
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import LOCAL_KEYS, Routing, mixture, sequential
from crumb.architectures.reader import Reader

EXPERTS = "model.layers.{block}.block_sparse_moe"


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    value = reader.configuration.get("sliding_window")
    window = None if value is None else as_integer(value, "sliding_window")
    return (BlockKind(reader.rope(), window),) * reader.sizes.blocks


def _block(reader: Reader, _: int) -> Block:
    return sequential(mixture(reader, Routing("softmax", "sum")))


FAMILY = replace(
    LLAMA,
    model_type="mixtral",
    keys={**LLAMA.keys, **LOCAL_KEYS},
    defaults={
        **LLAMA.defaults,
        "key_value_heads": 8,
        "positions": 131072,
        "epsilon": 1e-5,
        "theta": 1e6,
        "experts": 8,
        "used": 2,
    },
    tensors={
        **{
            role: name for role, name in LLAMA.tensors.items() if role not in ("gate", "up", "down")
        },
        "router": f"{EXPERTS}.gate",
        "expert_gate": f"{EXPERTS}.experts.{{{{expert}}}}.w1",
        "expert_up": f"{EXPERTS}.experts.{{{{expert}}}}.w3",
        "expert_down": f"{EXPERTS}.experts.{{{{expert}}}}.w2",
    },
    biases={},
    kinds=_kinds,
    block=_block,
)
