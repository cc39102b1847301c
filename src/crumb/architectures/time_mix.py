"""The two halves of an RWKV block: what mixes tokens, and what mixes features.

In: roles of a family's tensors. Out: operations: token shifts, matrices, the recurrence.
Source: arXiv 2305.13048, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crumb.architectures.block import Added, Block, Normed
from crumb.operations.activation import Activation
from crumb.operations.conv import Conv
from crumb.operations.multiply import Multiply
from crumb.operations.operation import Operation
from crumb.operations.recurrence import Recurrence

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder


def shifted(
    builder: Builder, role: str, source: str, block: int, form: str = "mix", flat: bool = False
) -> Conv:
    """Each feature between this token's and the last one's, as the matrix of a role reads it."""
    name, slot = builder.bare(f"{role}_mix", block), f"block.{block}.{role}"
    return Conv(source, f"{role}_shift", name, None, builder.sizes.hidden, 2, form, slot, flat)


@dataclass(frozen=True)
class TimeMix:
    """output(sigmoid(receptance) * mean of values by key and age)."""

    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        hidden = builder.sizes.hidden
        inner = builder.reader.size("inner", hidden)
        operations: list[Operation] = []
        for role in ("key", "value", "receptance"):
            operations += [
                shifted(builder, role, self.input, block),
                builder.linear(role, f"{role}_shift", role, (hidden, inner), block),
            ]
        weights = (builder.bare("decay", block), builder.bare("bonus", block))
        return [
            *operations,
            Recurrence(
                ("key", "value"), "mixed", "wkv4", inner, inner, 1, 1, weights, f"block.{block}.wkv"
            ),
            Activation("receptance", "receptance", "sigmoid"),
            Multiply("receptance", "mixed", "mixed"),
            builder.linear("output", "mixed", self.output, (inner, hidden), block),
        ]


@dataclass(frozen=True)
class ChannelMix:
    """sigmoid(receptance) * down(activation(up))."""

    input: str = "normed"
    output: str = "mlp"
    form: str = "mix"  # of token shifts

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        sizes = builder.sizes
        hidden, wide = sizes.hidden, sizes.feed_forward
        return [
            shifted(builder, "up", self.input, block, self.form),
            builder.linear("up", "up_shift", "inner", (hidden, wide), block),
            Activation("inner", "inner", sizes.activation),
            builder.linear("down", "inner", self.output, (wide, hidden), block),
            shifted(builder, "gate", self.input, block, self.form),
            builder.linear("gate", "gate_shift", "gate", (hidden, hidden), block),
            Activation("gate", "gate", "sigmoid"),
            Multiply("gate", self.output, self.output),
        ]


MIXED_BLOCK: Block = (
    Normed("attention_norm"),
    TimeMix(),
    Added("attended"),
    Normed("mlp_norm"),
    ChannelMix(),
    Added("mlp"),
)
"""Both halves of RWKV-4, each behind a norm."""
