"""cohere2: Command-R7B: cohere with three rotating windows to one full block that does not."""

from dataclasses import replace

from crumb.architectures.cohere import FAMILY as COHERE
from crumb.architectures.configuration import read_window
from crumb.architectures.family import BlockKind
from crumb.architectures.kinds import all_but_every
from crumb.architectures.reader import Reader

NORMS = ("query_norm", "key_norm")


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    """A block without a window does not rotate."""
    window, rope = read_window(reader.configuration, "sliding_window", 4096), reader.rope()
    slides = BlockKind(rope if window is not None else None, window)
    return tuple(slides if each else BlockKind(None) for each in all_but_every(reader, 4))


FAMILY = replace(
    COHERE,
    model_type="cohere2",
    defaults={**COHERE.defaults, "theta": 10000.0},
    tensors={role: name for role, name in COHERE.tensors.items() if role not in NORMS},
    optional={},
    kinds=_kinds,
)
