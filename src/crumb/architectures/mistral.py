"""mistral: llama with a sliding window in every block where the configuration gives one."""

from dataclasses import replace

from crumb.architectures.configuration import read_window
from crumb.architectures.family import BlockKind
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.reader import Reader


def windows(reader: Reader, default: int | None = 4096) -> tuple[BlockKind, ...]:
    """One window for all blocks, or none where the key is null."""
    window = read_window(reader.configuration, "sliding_window", default)
    return (BlockKind(reader.rope(), window),) * reader.sizes.blocks


FAMILY = replace(
    LLAMA,
    model_type="mistral",
    biases={},
    defaults={**LLAMA.defaults, "key_value_heads": 8, "positions": 131072},
    kinds=windows,
)
