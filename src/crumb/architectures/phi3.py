"""phi3: Phi-3, Phi-4 and their minis: llama with fused projections, and frequencies by length."""

from dataclasses import replace

from crumb.architectures.configuration import Configuration, read_object, read_window
from crumb.architectures.family import BlockKind, Fused
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.reader import Reader
from crumb.operations.rope import ORIGINAL

APART = ("query", "key", "value", "gate", "up")
OLD_KINDS = ("su", "yarn")


def _restate(configuration: Configuration) -> Configuration:
    """Its first files call their frequencies su, or yarn; they come from 4096 positions."""
    configuration = {ORIGINAL: 4096, **configuration}
    key = "rope_scaling" if configuration.get("rope_scaling") else "rope_parameters"
    scaling = read_object(configuration, key)
    if (scaling.get("rope_type") or scaling.get("type")) not in OLD_KINDS:
        return configuration
    return {**configuration, key: {**scaling, "rope_type": "longrope"}}


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    window = read_window(reader.configuration, "sliding_window", None)
    return (BlockKind(reader.rope(), window),) * reader.sizes.blocks


FAMILY = replace(
    LLAMA,
    model_type="phi3",
    keys={word: key for word, key in LLAMA.keys.items() if word != "head_dim"},
    defaults={**LLAMA.defaults, "epsilon": 1e-5, "positions": 4096, "key_value_heads": None},
    tensors={
        **{role: name for role, name in LLAMA.tensors.items() if role not in APART},
        "qkv": "model.layers.{block}.self_attn.qkv_proj",
        "gate_up": "model.layers.{block}.mlp.gate_up_proj",
    },
    biases={},
    fused=Fused(outer=1),
    partial=True,
    kinds=_kinds,
    restate=_restate,
)
