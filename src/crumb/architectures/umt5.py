"""umt5: T5 1.1 over many languages, each block with relative positions of its own."""

from dataclasses import replace

from crumb.architectures.configuration import Configuration
from crumb.architectures.family import EncoderPart
from crumb.architectures.t5 import FAMILY as T5
from crumb.architectures.t5_stacks import MLP, kinds, restate, stack_of


def _restate(configuration: Configuration) -> Configuration:
    return restate({MLP: "gated-gelu", **configuration})


FAMILY = replace(
    T5,
    model_type="umt5",
    defaults={
        **T5.defaults,
        "blocks": 8,
        "heads": 6,
        "feed_forward": 1024,
        "vocabulary": 250112,
    },
    encoder=EncoderPart(stack_of("encoder", 1), kinds("encoder", every=True)),
    kinds=kinds("decoder", every=True),
    restate=_restate,
)
