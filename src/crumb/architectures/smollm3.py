"""smollm3: llama in which every fourth block does not rotate."""

from dataclasses import replace

from crumb.architectures.configuration import as_integer, read_flag, read_window, refuse
from crumb.architectures.family import BlockKind
from crumb.architectures.kinds import sliding_blocks
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.reader import Reader


def rotating_blocks(reader: Reader) -> list[bool]:
    """Whether each block rotates: what no_rope_layers says with 1, or all but every fourth."""
    blocks, flags = reader.sizes.blocks, reader.configuration.get("no_rope_layers")
    if not flags and flags != 0:  # null and an empty list mean the rule
        key = "no_rope_layer_interval"
        interval = as_integer(reader.configuration.get(key, 4), key)
        return [(block + 1) % interval != 0 for block in range(blocks)]
    if not isinstance(flags, list) or len(flags) != blocks or not set(flags) <= {0, 1}:
        raise refuse("no_rope_layers", f"a list of {blocks} numbers, each 0 or 1", flags)
    return [each == 1 for each in flags]


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    window = read_window(reader.configuration, "sliding_window", None)
    if not read_flag(reader.configuration, "use_sliding_window", False):
        window = None
    rotating, rope = rotating_blocks(reader), reader.rope()
    sliding = sliding_blocks(reader, lambda block: window is not None and not rotating[block])
    return tuple(
        BlockKind(rope if turns else None, window if slides else None)
        for turns, slides in zip(rotating, sliding, strict=True)
    )


FAMILY = replace(
    LLAMA,
    model_type="smollm3",
    defaults={**LLAMA.defaults, "key_value_heads": 4, "positions": 32768, "theta": 2e6},
    kinds=_kinds,
    tied=True,
)
