"""granite: llama with scales of the embedding, scores, what blocks add, and logits."""

from dataclasses import replace

from crumb.architectures.family import Multipliers
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.reader import Reader


def scales_of(reader: Reader) -> Multipliers:
    """The four numbers; logits are divided by theirs."""
    return Multipliers(
        embedding=reader.number("embedding_scale"),
        attention=reader.number("attention_scale"),
        residual=reader.number("residual_scale"),
        logits=1.0 / reader.number("logit_divisor"),
    )


SCALES = {
    "embedding_scale": "embedding_multiplier",
    "attention_scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_divisor": "logits_scaling",
}

FAMILY = replace(
    LLAMA,
    model_type="granite",
    keys={**{word: key for word, key in LLAMA.keys.items() if word != "head_dim"}, **SCALES},
    defaults={**LLAMA.defaults, **dict.fromkeys(SCALES, 1.0)},
    multipliers=scales_of,
)
