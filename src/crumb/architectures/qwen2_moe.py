"""qwen2_moe: qwen2 with experts in some blocks, and beside them one that every token uses."""

from dataclasses import replace

from crumb.architectures.configuration import as_integer, read_flag, read_window
from crumb.architectures.family import BlockKind
from crumb.architectures.kinds import sliding_blocks
from crumb.architectures.mixture import (
    QWEN_DEFAULTS,
    QWEN_KEYS,
    QWEN_TENSORS,
    with_gated_expert,
)
from crumb.architectures.qwen2 import FAMILY as QWEN2
from crumb.architectures.reader import Reader

SHARED = "model.layers.{block}.mlp.shared_expert"


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    configuration = reader.configuration
    slides = read_flag(configuration, "use_sliding_window", False)
    window = read_window(configuration, "sliding_window", 4096) if slides else None
    full = as_integer(configuration.get("max_window_layers", 28), "max_window_layers", lowest=0)
    sliding = sliding_blocks(reader, lambda block: slides and block % 2 == 0 and block < full)
    return tuple(BlockKind(reader.rope(), window if each else None) for each in sliding)


FAMILY = replace(
    QWEN2,
    model_type="qwen2_moe",
    keys={**QWEN2.keys, **QWEN_KEYS, "shared_inner": "shared_expert_intermediate_size"},
    defaults={**QWEN2.defaults, **QWEN_DEFAULTS, "key_value_heads": 16, "qkv_bias": True}
    | {"experts": 60, "used": 4, "expert_inner": 1408, "shared_inner": 5632},
    tensors={
        **QWEN2.tensors,
        **QWEN_TENSORS,
        **{f"shared_{role}": f"{SHARED}.{role}_proj" for role in ("gate", "up", "down")},
        "shared_router": "model.layers.{block}.mlp.shared_expert_gate",
    },
    biases=dict.fromkeys(("query", "key", "value"), "qkv_bias"),
    kinds=_kinds,
    block=with_gated_expert,
)
