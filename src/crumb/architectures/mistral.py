"""mistral: llama with a sliding window in every block where the configuration gives one."""

from dataclasses import replace

from crumb.architectures.configuration import Configuration, read_window
from crumb.architectures.family import Windows
from crumb.architectures.llama import FAMILY as LLAMA


def _windows(configuration: Configuration, blocks: int) -> Windows:
    return (read_window(configuration, "sliding_window", 4096),) * blocks


FAMILY = replace(
    LLAMA,
    model_type="mistral",
    biases={},
    defaults={**LLAMA.defaults, "key_value_heads": 8, "positions": 131072},
    windows=_windows,
)
