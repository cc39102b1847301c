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
class DeltaNet:
    """output(norm(what queries read of the state) * silu(gate))."""

    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        reader, hidden = builder.reader, builder.sizes.hidden
        heads, few = reader.size("value_heads"), reader.size("key_heads")
        if heads % few:
            key = reader.find("value_heads")[0]
            raise refuse(key, f"a multiple of the {few} key heads", heads)
        key_dim, value_dim = reader.size("delta_key_dim"), reader.size("delta_value_dim")
        each, narrow, wide = heads // few, few * key_dim, heads * value_dim
        slot = f"block.{block}.delta"
        rate, bias = builder.bare("delta_rate", block), builder.bare("delta_bias", block)
        weight = builder.name("delta_norm", block)
        return [
            builder.linear(
                "delta_in", self.input, "together", (hidden, 2 * narrow + 2 * wide), block
            ),
            Split(
                "together",
                ("query", "key", "value", "pass"),
                few,
                (key_dim, key_dim, each * value_dim, each * value_dim),
            ),
            Linear(
                self.input,
                "paces",
                builder.name("delta_paces", block),
                None,
                hidden,
                2 * heads,
                exact=True,
            ),
            Split("paces", ("share", "step"), few, (each, each)),
            *self._convolved(builder, block, (narrow, narrow, wide)),
            *self._of_length_one("query", few, key_dim, 1.0 / key_dim),
            *self._of_length_one("key", few, key_dim, key_dim**-0.5),
            Recurrence(
                RULES["delta"].inputs,
                "mixed",
                "delta",
                heads,
                few,
                key_dim,
                value_dim,
                (rate, bias),
                slot,
            ),
            Norm("mixed", "mixed", "rms", weight, None, builder.sizes.epsilon, wide, heads),
            Activation("pass", "pass", "silu"),
            Multiply("pass", "mixed", "mixed"),
            builder.linear("delta_output", "mixed", self.output, (wide, hidden), block),
        ]

    def _convolved(
        self, builder: Builder, block: int, widths: tuple[int, int, int]
    ) -> list[Operation]:
        """Queries, keys and values, each feature with its last few."""
        parts, features = ("query", "key", "value"), sum(widths)
        name, taps = builder.name("delta_taps", block), builder.reader.size("taps")
        slot = f"block.{block}.taps"
        return [
            Join(parts, "joined", widths, 1),
            Conv("joined", "convolved", name, None, features, taps, "taps", slot),
            Activation("convolved", "convolved", builder.sizes.activation),
            Split("convolved", parts, 1, widths),
        ]

    def _of_length_one(self, name: str, heads: int, dim: int, scale: float) -> list[Operation]:
        """Heads over their length, times what is left of the scale behind a root mean square."""
        epsilon = LENGTH_EPSILON / dim
        return [
            Norm(name, name, "rms", None, None, epsilon, heads * dim, heads),
            Activation(name, name, "scale", scale),
        ]
