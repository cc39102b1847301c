"""A row of blocks that keep a matrix by the gated delta rule, and one of attention with gates.

In: words "key_heads", "value_heads", "delta_key_dim", "delta_value_dim" and "taps", roles that
begin with delta_. Out: operations. Refuses value heads that key heads do not divide.
Source: arXiv 2412.06464; transformers, Qwen3NextGatedDeltaNet and Qwen3NextAttention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crumb.architectures.block import SelfAttention
from crumb.architectures.configuration import refuse
from crumb.operations.activation import Activation
from crumb.operations.conv import Conv
from crumb.operations.join import Join
from crumb.operations.linear import Linear
from crumb.operations.multiply import Multiply
from crumb.operations.norm import Norm
from crumb.operations.operation import Operation
from crumb.operations.recurrence import RULES, Recurrence
from crumb.operations.split import Split

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder
    from crumb.architectures.reader import Reader

LENGTH_EPSILON = 1e-6
"""Added to the squared length of queries and keys."""


@dataclass(frozen=True)
class GatedAttention(SelfAttention):
    """Each head's queries come with a gate for what the head attends to."""

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        *before, output = super().operations(builder, block)
        gate = Activation("query_gate", "query_gate", "sigmoid")
        return [*before, gate, Multiply("query_gate", "mixed", "mixed"), output]

    def _projections(self, builder: Builder, block: int) -> list[Operation]:
        query, *others = super()._projections(builder, block)
        assert isinstance(query, Linear), "queries come first"
        sizes = builder.sizes
        wide = (query.in_features, 2 * query.out_features)
        both = builder.linear("query", self.input, "queries", wide, block)
        parts = (sizes.head_dim, sizes.head_dim)
        return [both, Split("queries", ("query", "query_gate"), sizes.heads, parts), *others]


@dataclass(frozen=True)
class DeltaSizes:
    """The checked sizes of a delta rule."""

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int

    @property
    def widths(self) -> tuple[int, int, int]:
        """Features of all queries, keys and values."""
        narrow = self.key_heads * self.key_dim
        return narrow, narrow, self.heads * self.value_dim


def delta_sizes(reader: Reader) -> DeltaSizes:
    """Of a configuration. Raises: CheckpointError."""
    heads, few = reader.size("value_heads"), reader.size("key_heads")
    if heads % few:
        key = reader.find("value_heads")[0]
        raise refuse(key, f"a multiple of the {few} key heads", heads)
    return DeltaSizes(heads, few, reader.size("delta_key_dim"), reader.size("delta_value_dim"))


PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class DeltaNet:
    """output(norm(what queries read of the state) * silu(gate)).

    Where there is a "delta_in", it holds everything for a key head together; else queries, keys
    and values behind each other are a matrix, the gate and both paces one each.
    """

    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        sizes, hidden = delta_sizes(builder.reader), builder.sizes.hidden
        widths, taps = sizes.widths, builder.reader.size("taps")
        weights = builder.bare("delta_rate", block), builder.bare("delta_bias", block)
        norm, convolution = (builder.name(f"delta_{role}", block) for role in ("norm", "taps"))
        slot, wide = f"block.{block}", widths[2]
        return [
            *self._projections(builder, block, sizes),
            Conv(
                "joined", "convolved", convolution, None, sum(widths), taps, "taps", f"{slot}.taps"
            ),
            Activation("convolved", "convolved", builder.sizes.activation),
            Split("convolved", PARTS, 1, widths),
            *self._of_length_one("query", sizes, 1.0 / sizes.key_dim),
            *self._of_length_one("key", sizes, sizes.key_dim**-0.5),
            Recurrence(
                RULES["delta"].inputs,
                "mixed",
                "delta",
                sizes.heads,
                sizes.key_heads,
                sizes.key_dim,
                sizes.value_dim,
                weights,
                f"{slot}.delta",
            ),
            Norm("mixed", "mixed", "rms", norm, None, builder.sizes.epsilon, wide, sizes.heads),
            Activation("pass", "pass", "silu"),
            Multiply("pass", "mixed", "mixed"),
            builder.linear("delta_output", "mixed", self.output, (wide, hidden), block),
        ]

    def _projections(self, builder: Builder, block: int, sizes: DeltaSizes) -> list[Operation]:
        """What is convolved, the gate, and the paces: shares and steps."""
        widths, hidden, few = sizes.widths, builder.sizes.hidden, sizes.key_heads
        if not builder.has("delta_in"):
            return [
                builder.linear("delta_qkv", self.input, "joined", (hidden, sum(widths)), block),
                builder.linear("delta_gate", self.input, "pass", (hidden, widths[2]), block),
                self._pace(builder, "share", block, sizes.heads),
                self._pace(builder, "step", block, sizes.heads),
            ]
        each = sizes.heads // few
        values, wide = each * sizes.value_dim, sum(widths) + widths[2]
        apart = (sizes.key_dim, sizes.key_dim, values, values)
        return [
            builder.linear("delta_in", self.input, "together", (hidden, wide), block),
            Split("together", (*PARTS, "pass"), few, apart),
            self._pace(builder, "paces", block, 2 * sizes.heads),
            Split("paces", ("share", "step"), few, (each, each)),
            Join(PARTS, "joined", widths, 1),
        ]

    def _pace(self, builder: Builder, name: str, block: int, count: int) -> Linear:
        """It stays float: some rows, and they set how the state fades."""
        weight, hidden = builder.name(f"delta_{name}", block), builder.sizes.hidden
        return Linear(self.input, name, weight, None, hidden, count, exact=True)

    def _of_length_one(self, name: str, sizes: DeltaSizes, scale: float) -> list[Operation]:
        """Heads over their length, times what is left of the scale behind a root mean square."""
        epsilon, heads = LENGTH_EPSILON / sizes.key_dim, sizes.key_heads
        width = heads * sizes.key_dim
        return [
            Norm(name, name, "rms", None, None, epsilon, width, heads),
            Activation(name, name, "scale", scale),
        ]
