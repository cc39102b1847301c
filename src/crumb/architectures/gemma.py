"""gemma: llama with weights of norms around 0 and the embedding times the root of its width."""

import math
from dataclasses import replace

from crumb.architectures.configuration import Configuration
from crumb.architectures.family import RMS_OF_ONE_MORE, Multipliers
from crumb.architectures.llama import FAMILY as LLAMA


def _restate(configuration: Configuration) -> Configuration:
    """Its first files say gelu and mean its approximation."""
    if configuration.get("hidden_act") != "gelu":
        return configuration
    return {**configuration, "hidden_act": "gelu_pytorch_tanh"}


FAMILY = replace(
    LLAMA,
    model_type="gemma",
    defaults={
        **LLAMA.defaults,
        "key_value_heads": 16,
        "head_dim": 256,
        "activation": "gelu_pytorch_tanh",
        "positions": 8192,
    },
    biases={role: flag for role, flag in LLAMA.biases.items() if flag == "attention_bias"},
    norm=RMS_OF_ONE_MORE,
    multipliers=lambda reader: Multipliers(embedding=math.sqrt(reader.sizes.hidden)),
    restate=_restate,
    tied=True,
)
