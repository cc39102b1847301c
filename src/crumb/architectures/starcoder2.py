"""starcoder2: layer norms, a plain MLP, biases, and a window in every block that names one."""

from dataclasses import replace

from crumb.architectures.configuration import read_window
from crumb.architectures.family import LAYER, BlockKind
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.reader import Reader

ROLES = ("query", "key", "value", "output", "up", "down")


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    window = read_window(reader.configuration, "sliding_window", None)
    return (BlockKind(reader.rope(), window),) * reader.sizes.blocks


FAMILY = replace(
    LLAMA,
    model_type="starcoder2",
    keys={
        **{word: key for word, key in LLAMA.keys.items() if word != "head_dim"},
        "epsilon": "norm_epsilon",
    },
    defaults={
        **LLAMA.defaults,
        "key_value_heads": 2,
        "activation": "gelu_pytorch_tanh",
        "epsilon": 1e-5,
        "positions": 4096,
        "use_bias": True,
    },
    tensors={
        **{role: name for role, name in LLAMA.tensors.items() if role != "gate"},
        "up": "model.layers.{block}.mlp.c_fc",
        "down": "model.layers.{block}.mlp.c_proj",
    },
    biases=dict.fromkeys(ROLES, "use_bias"),
    norm=LAYER,
    kinds=_kinds,
    tied=True,
)
