"""A gated short convolution, in the place of a block's attention, as LFM2 has it.

In: roles of a family's tensors. Out: operations: one matrix for a gate before, a gate behind and
what passes both, the convolution, the matrix back; LFM2's configurations in one spelling.
Source: transformers, Lfm2ShortConv and Lfm2MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crumb.architectures.block import Added, Block, FeedForward, Normed
from crumb.architectures.configuration import Configuration, as_integer, as_number, read_flag
from crumb.operations.conv import Conv
from crumb.operations.multiply import Multiply
from crumb.operations.operation import Operation
from crumb.operations.split import Split

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder


@dataclass(frozen=True)
class ShortConvolution:
    """output(behind * convolution(before * value)), all three of one projection."""

    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        hidden = builder.sizes.hidden
        parts = ("before", "behind", "passing")
        name, bias = builder.name("convolution", block), builder.bias("convolution", block)
        taps = builder.reader.size("taps")
        return [
            builder.linear("gates", self.input, "gates", (hidden, 3 * hidden), block),
            Split("gates", parts, 1, (hidden,) * 3),
            Multiply("before", "passing", "passing"),
            Conv("passing", "mixed", name, bias, hidden, taps, "taps", f"block.{block}.taps"),
            Multiply("behind", "mixed", "mixed"),
            builder.linear("mixer_output", "mixed", self.output, (hidden, hidden), block),
        ]


CONVOLVED: Block = (
    Normed("attention_norm"),
    ShortConvolution(),
    Added("attended"),
    Normed("mlp_norm"),
    FeedForward(),
    Added("mlp"),
)


def restate(configuration: Configuration) -> Configuration:
    """The MLP's width as it is, and whether the head is tied, by whichever key says so.

    Raises: CheckpointError.
    """
    key = "block_ff_dim" if "block_ff_dim" in configuration else "intermediate_size"
    width = as_integer(configuration.get(key, 12288), key)
    if read_flag(configuration, "block_auto_adjust_ff_dim", True):
        width = int(2 * width / 3)
        if (factor := configuration.get(key := "block_ffn_dim_multiplier", 1.0)) is not None:
            width = int(as_number(factor, key) * width)
            of = as_integer(configuration.get(key := "block_multiple_of", 256), key)
            width = -(-width // of) * of
    tied = read_flag(configuration, "tie_word_embeddings", True)
    tied = read_flag(configuration, "tie_embedding", tied)
    return {**configuration, "intermediate_size": width, "tie_word_embeddings": tied}
