"""qwen2: llama with biases on query, key and value, and a window in the blocks that name one."""

from dataclasses import replace

from crumb.architectures.configuration import as_integer, read_flag, read_window
from crumb.architectures.family import BlockKind
from crumb.architectures.kinds import sliding_blocks
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.reader import Reader


def kinds_by_layer(reader: Reader) -> tuple[BlockKind, ...]:
    """A window in the blocks that layer_types names, or from max_window_layers on."""
    configuration = reader.configuration
    window = read_window(configuration, "sliding_window", 4096)
    full = as_integer(configuration.get("max_window_layers", 28), "max_window_layers", lowest=0)
    sliding = sliding_blocks(reader, lambda block: block >= full)
    if not read_flag(configuration, "use_sliding_window", False):
        window = None
    rope = reader.rope()
    return tuple(BlockKind(rope, window if each else None) for each in sliding)


FAMILY = replace(
    LLAMA,
    model_type="qwen2",
    biases={"query": True, "key": True, "value": True},
    defaults={**LLAMA.defaults, "key_value_heads": 32, "positions": 32768},
    kinds=kinds_by_layer,
)
