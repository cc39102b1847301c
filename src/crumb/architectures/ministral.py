"""ministral: mistral with a window in the blocks that layer_types names."""

from dataclasses import replace

from crumb.architectures.configuration import read_window
from crumb.architectures.family import BlockKind
from crumb.architectures.kinds import sliding_blocks
from crumb.architectures.mistral import FAMILY as MISTRAL
from crumb.architectures.reader import Reader


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    window, rope = read_window(reader.configuration, "sliding_window", 4096), reader.rope()
    sliding = sliding_blocks(reader, lambda _: window is not None)
    return tuple(BlockKind(rope, window if each else None) for each in sliding)


FAMILY = replace(MISTRAL, model_type="ministral", kinds=_kinds)
