"""qwen2: llama with biases on query, key and value, and a window in the blocks that name one."""

from dataclasses import replace

from crumb.architectures.family import Configuration, Windows
from crumb.architectures.llama import FAMILY as LLAMA


def _windows(configuration: Configuration, blocks: int) -> Windows:
    window = configuration.get("sliding_window")
    if window is None or not configuration.get("use_sliding_window", False):
        return (None,) * blocks
    kinds = configuration.get("layer_types")
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds[:blocks])
    full = int(configuration.get("max_window_layers", 28))
    return tuple(None if block < full else window for block in range(blocks))


FAMILY = replace(
    LLAMA,
    model_type="qwen2",
    biases={"query": True, "key": True, "value": True},
    windows=_windows,
)
