"""The order of operations of a block, as data: rows that each become a few operations.

In: rows, such as those of SEQUENTIAL, and a Builder that knows the model's sizes and names.
Out: operations over the buffers that the rows name; the stream that runs through all blocks is
"hidden". A row of another file has an `operations` of its own: experts, latent attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from crumb.operations.activation import Activation
from crumb.operations.add import Add
from crumb.operations.attention import Attention
from crumb.operations.linear import Linear
from crumb.operations.multiply import Multiply
from crumb.operations.norm import Norm
from crumb.operations.operation import Operation
from crumb.operations.rotary import Rotary
from crumb.operations.split import Split

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder


class BlockRow(Protocol):
    """One row of a block."""

    def operations(self, builder: Builder, block: int, /) -> list[Operation]: ...


Block = tuple[BlockRow, ...]


@dataclass(frozen=True)
class Normed:
    """output = norm(input)."""

    role: str
    input: str = "hidden"
    output: str = "normed"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        return [builder.norm(self.role, self.input, self.output, block)]


@dataclass(frozen=True)
class Added:
    """hidden = left + right, times the family's residual scale."""

    right: str
    left: str = "hidden"

    def operations(self, builder: Builder, _: int) -> list[Operation]:
        add = Add(self.left, self.right, "hidden")
        return [*builder.scaled(self.right, builder.multipliers.residual), add]


@dataclass(frozen=True)
class Sum:
    """output = left + right, parts of what a block adds."""

    left: str
    right: str
    output: str

    def operations(self, _: Builder, __: int) -> list[Operation]:
        return [Add(self.left, self.right, self.output)]


@dataclass(frozen=True)
class SelfAttention:
    """Queries, keys and values of the input; heads normalised, rotated, mixed, projected."""

    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        sizes, kind, numbers = builder.sizes, builder.kinds[block], builder.multipliers
        operations = self._projections(builder, block)
        heads = (("query", sizes.heads), ("key", sizes.key_value_heads))
        operations += [
            self._head_norm(builder, role, count, block)
            for role, count in heads
            if builder.has(f"{role}_norm")
        ]
        if numbers.clip is not None:
            operations += [
                Activation(role, role, "clip", numbers.clip) for role in ("query", "key", "value")
            ]
        if kind.rope is not None:
            style = builder.family.rotary
            operations += [
                Rotary(role, "positions", role, count, style, kind.rope) for role, count in heads
            ]
        if kind.normed:
            operations += [
                Norm(role, role, "rms", None, None, sizes.epsilon, count * sizes.head_dim, count)
                for role, count in heads
            ]
        scale = 1.0 / math.sqrt(sizes.head_dim) if numbers.attention is None else numbers.attention
        mixed = Attention(
            "query",
            "key",
            "value",
            "mixed",
            sizes.heads,
            sizes.key_value_heads,
            sizes.head_dim,
            scale * kind.scale,
            causal=kind.causal,
            window=kind.window,
            state=f"block.{block}" if kind.causal else None,
            soft_cap=numbers.score_cap,
            sinks=builder.family.tensors["sinks"].format(block=block)
            if builder.has("sinks")
            else None,
            slopes=kind.slopes,
            buckets=kind.buckets,
            bias=kind.bias,
            temperature=kind.temperature,
            chunk=kind.chunk,
        )
        width = (sizes.heads * sizes.head_dim, sizes.hidden)
        return [*operations, mixed, builder.linear("output", "mixed", self.output, width, block)]

    def _projections(self, builder: Builder, block: int) -> list[Operation]:
        sizes, fused = builder.sizes, builder.family.fused
        narrow = sizes.key_value_heads * sizes.head_dim
        widths = {"query": sizes.heads * sizes.head_dim, "key": narrow, "value": narrow}
        if not builder.has("qkv"):
            return [
                builder.linear(role, self.input, role, (sizes.hidden, width), block)
                for role, width in widths.items()
            ]
        outer = fused.outer or sizes.key_value_heads
        parts = tuple(widths[role] // outer for role in fused.order)
        whole = (sizes.hidden, sum(widths.values()))
        project: Linear = builder.linear("qkv", self.input, "qkv", whole, block)
        return [project, Split("qkv", fused.order, outer, parts)]

    def _head_norm(self, builder: Builder, role: str, heads: int, block: int) -> Norm:
        form, sizes = builder.family.head_norm, builder.sizes
        name = f"{role}_norm"
        bias = builder.name(name, block, "bias") if form.bias else None
        width = heads * sizes.head_dim
        return Norm(
            role,
            role,
            form.kind,
            builder.name(name, block),
            bias,
            sizes.epsilon,
            width,
            groups=1 if form.whole else heads,
            per_channel=form.per_channel,
            stacked=form.per_channel,
            offset=form.offset,
        )


@dataclass(frozen=True)
class FeedForward:
    """down(activation(up)), or down(activation(gate) * up). Roles begin with `prefix`."""

    input: str = "normed"
    output: str = "mlp"
    prefix: str = ""
    inner: int | None = None  # features; None: the model's

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        sizes = builder.sizes
        wide = (sizes.hidden, self.inner or sizes.feed_forward)
        width = (wide[1], wide[0])
        down = builder.linear(f"{self.prefix}down", "inner", self.output, width, block)
        if not builder.family.gated:
            up = builder.linear("up", self.input, "up", wide, block)
            return [up, Activation("up", "inner", sizes.activation), down]
        return [
            *self._gate_and_up(builder, wide, block),
            Activation("gate", "gate", sizes.activation),
            Multiply("gate", "up", "inner"),
            down,
        ]

    def _gate_and_up(self, builder: Builder, wide: tuple[int, int], block: int) -> list[Operation]:
        if builder.has("gate_up"):
            both = (wide[0], 2 * wide[1])
            project = builder.linear("gate_up", self.input, "gate_up", both, block)
            return [project, Split("gate_up", ("gate", "up"), 1, (wide[1], wide[1]))]
        return [
            builder.linear(f"{self.prefix}{role}", self.input, role, wide, block)
            for role in ("gate", "up")
        ]


SEQUENTIAL: Block = (
    Normed("attention_norm"),
    SelfAttention(),
    Added("attended"),
    Normed("mlp_norm"),
    FeedForward(),
    Added("mlp"),
)
PARALLEL: Block = (
    Normed("attention_norm"),
    SelfAttention(),
    Normed("mlp_norm"),
    FeedForward(),
    Added("attended"),
    Added("mlp"),
)
"""Attention and MLP both read the block's input, each through a norm of its own."""

PARALLEL_OF_ONE_NORM: Block = (
    Normed("attention_norm"),
    SelfAttention(),
    FeedForward(),
    Added("attended"),
    Added("mlp"),
)
NORMED_BEFORE_AND_AFTER: Block = (
    Normed("attention_norm"),
    SelfAttention(),
    Normed("attention_post_norm", "attended", "attended"),
    Added("attended"),
    Normed("mlp_norm"),
    FeedForward(),
    Normed("mlp_post_norm", "mlp", "mlp"),
    Added("mlp"),
)
NORMED_AFTER: Block = (
    SelfAttention("hidden"),
    Normed("attention_post_norm", "attended", "attended"),
    Added("attended"),
    FeedForward("hidden"),
    Normed("mlp_post_norm", "mlp", "mlp"),
    Added("mlp"),
)
"""What a block adds is normalised, not what it reads."""

STREAM_NORMED_AFTER: Block = (
    SelfAttention("hidden"),
    Added("attended"),
    Normed("attention_norm", "hidden", "hidden"),
    FeedForward("hidden"),
    Added("mlp"),
    Normed("mlp_norm", "hidden", "hidden"),
)
"""The sum is normalised: the first transformers."""
