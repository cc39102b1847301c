"""olmo3: olmo2 with three windows to one full block, whose frequencies alone are scaled."""

from dataclasses import replace

from crumb.architectures.configuration import Configuration, read_window
from crumb.architectures.family import BlockKind
from crumb.architectures.kinds import KINDS, ropes_by_kind, sliding_blocks
from crumb.architectures.olmo2 import FAMILY as OLMO2
from crumb.architectures.reader import Reader


def _restate(configuration: Configuration) -> Configuration:
    return ropes_by_kind(configuration, dict.fromkeys(KINDS, ("rope_theta", 500000.0)))


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    window = read_window(reader.configuration, "sliding_window", 4096)
    kinds = BlockKind(reader.rope(KINDS[0])), BlockKind(reader.rope(KINDS[1]), window)
    return tuple(kinds[each] for each in sliding_blocks(reader, lambda block: block % 4 != 3))


FAMILY = replace(OLMO2, model_type="olmo3", kinds=_kinds, restate=_restate)
