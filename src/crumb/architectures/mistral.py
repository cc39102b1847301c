"""mistral: llama with a sliding window in every block where the configuration gives one."""

from dataclasses import replace

from crumb.architectures.family import Configuration, Windows
from crumb.architectures.llama import FAMILY as LLAMA


def _windows(configuration: Configuration, blocks: int) -> Windows:
    return (configuration.get("sliding_window"),) * blocks


FAMILY = replace(
    LLAMA,
    model_type="mistral",
    biases={},
    defaults={**LLAMA.defaults, "key_value_heads": 8, "positions": 4096 * 32},
    windows=_windows,
)
