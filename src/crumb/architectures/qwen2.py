"""qwen2: llama with biases on query, key and value, and a window in the blocks that name one."""

from dataclasses import replace

from crumb.architectures.configuration import as_integer, check_kinds, read_flag, read_window
from crumb.architectures.family import BlockKind
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.reader import Reader

KINDS = ("full_attention", "sliding_attention")


def kinds_by_layer(reader: Reader) -> tuple[BlockKind, ...]:
    """A window in the blocks that layer_types names, or from max_window_layers on."""
    configuration, blocks = reader.configuration, reader.sizes.blocks
    window = read_window(configuration, "sliding_window", 4096)
    kinds = configuration.get("layer_types")
    if kinds is None:
        full = as_integer(configuration.get("max_window_layers", 28), "max_window_layers", lowest=0)
        kinds = [KINDS[block >= full] for block in range(blocks)]
    kinds = check_kinds(kinds, "layer_types", blocks, KINDS)
    if not read_flag(configuration, "use_sliding_window", False):
        window = None
    rope = reader.rope()
    return tuple(BlockKind(rope, window if kind == KINDS[1] else None) for kind in kinds)


FAMILY = replace(
    LLAMA,
    model_type="qwen2",
    biases={"query": True, "key": True, "value": True},
    defaults={**LLAMA.defaults, "key_value_heads": 32, "positions": 32768},
    kinds=kinds_by_layer,
)
