"""The halves of an RWKV-7 block, and what its blocks hand on beside the stream.

In: roles of a family's tensors, words "wkv_dim" and "..._rank". Out: operations: token shifts,
matrices, low ranks that stay float, the recurrence, a norm of each head.
The values of the first block are handed from block to block, behind the stream's features.
Refuses heads that do not divide the width. Source: arXiv 2503.14456, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from crumb.architectures.block import Added, Block, Normed
from crumb.architectures.configuration import (
    MISSING,
    Configuration,
    as_integer,
    as_number,
    refuse,
)
from crumb.architectures.time_mix import shifted
from crumb.operations.activation import Activation
from crumb.operations.add import Add
from crumb.operations.join import Join
from crumb.operations.multiply import Multiply
from crumb.operations.norm import Norm
from crumb.operations.operation import Operation
from crumb.operations.recurrence import Recurrence
from crumb.operations.split import Split

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder
    from crumb.architectures.reader import Reader

Between = tuple[str, float | None] | None
"""A function of operations/activation.py and its number; a cap of 1 is the hyperbolic tangent."""

FIRST = "first_value"
"""Values of the first block."""


def wkv_sizes(reader: Reader) -> tuple[int, int]:
    """Heads, and features of each. Raises: CheckpointError."""
    hidden = reader.sizes.hidden
    dim = reader.size("wkv_dim")
    if hidden % dim:
        raise refuse(reader.find("wkv_dim")[0], f"features that divide {hidden}", dim)
    return hidden // dim, dim


RANKS = {"decay": 2.5, "a": 2.5, "v": 1.7, "gate": 5.0}
"""By the root of the width, where a configuration says null."""


def widths_told(configuration: Configuration) -> Configuration:
    """A configuration of flash-linear-attention with the widths that null derives.

    Refuses blocks that attend, and values of another width. Raises: CheckpointError.
    """
    told: dict[str, Any] = dict(configuration)
    hidden = as_integer(told.get("hidden_size", MISSING), "hidden_size")
    heads, wide = told.get("num_heads"), told.get("value_dim")
    if told.get("attn") is not None:
        raise refuse("attn", "null: no block attends", told["attn"])
    widths = wide if isinstance(wide, list) else [wide]
    if any(each not in (None, hidden) for each in widths):
        raise refuse("value_dim", f"{hidden}, as hidden_size", wide)
    if told.get("head_dim", 0) is None and heads is None:
        raise refuse("head_dim", "a whole number here or in num_heads", None)
    if told.get("head_dim", 0) is None:
        told["head_dim"] = hidden // as_integer(heads, "num_heads", hidden)
    if told.get("intermediate_size") is None:
        ratio = told.get("hidden_ratio")
        ratio = 4.0 if ratio is None else as_number(ratio, "hidden_ratio", highest=1024.0)
        told["intermediate_size"] = 32 * math.ceil(int(hidden * ratio) / 32)
    dim = as_integer(told.get("head_dim", 64), "head_dim")
    for name, factor in RANKS.items():
        if told.get(f"{name}_low_rank_dim", 0) is None:
            grown = 1.0 if name == "gate" else dim / 64
            rank = 32 * round(factor * hidden**0.5 * grown / 32)
            told[f"{name}_low_rank_dim"] = max(32, rank)
    return told


def head_norm(builder: Builder, block: int, heads: int, epsilon: float) -> Norm:
    """Of what heads read, each alone with weights of its own."""
    weight, bias = (builder.name("mixed_norm", block, kind) for kind in ("weight", "bias"))
    hidden = builder.sizes.hidden
    return Norm("mixed", "mixed", "layer", weight, bias, epsilon, hidden, heads, per_channel=True)


@dataclass(frozen=True)
class FirstTaken:
    """The stream and the first block's values, of what the block before handed on."""

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        widths = (builder.sizes.hidden,) * 2
        return [Split("stream", ("hidden", FIRST), 1, widths)] if block else []


@dataclass(frozen=True)
class FirstPassed:
    """Both as one buffer for the next block."""

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        sizes = builder.sizes
        is_last = block == sizes.blocks - 1
        return [] if is_last else [Join(("hidden", FIRST), "stream", (sizes.hidden,) * 2, 1)]


@dataclass(frozen=True)
class DeltaMix:
    """output(gate * (norm(what queries read of the state) + what they read of their token))."""

    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        (heads, dim), sizes = wkv_sizes(builder.reader), builder.sizes
        square, value = (sizes.hidden, sizes.hidden), "value" if block else FIRST
        own_epsilon = builder.reader.optional_number("head_epsilon")
        epsilon = dim * sizes.epsilon if own_epsilon is None else own_epsilon
        weights = tuple(builder.bare(role, block) for role in ("direction", "renewal", "bonus"))
        slot = f"block.{block}.wkv"
        inputs = ("query", "key", value, "pace", "share")
        operations: list[Operation] = []
        for role, output in (("receptance", "query"), ("key", "key"), ("value", value)):
            operations += [
                shifted(builder, role, self.input, block, "lerp"),
                builder.linear(role, f"{role}_shift", output, square, block),
            ]
        return [
            *operations,
            *(self._toward_first(builder, block) if block else ()),
            *self._low_rank(builder, "pace", block, ("soft_cap", 1.0)),
            *self._low_rank(builder, "share", block),
            *self._low_rank(builder, "pass", block, ("sigmoid", None)),
            Recurrence(inputs, "mixed", "wkv7", heads, heads, dim, dim, weights, slot, "own"),
            head_norm(builder, block, heads, epsilon),
            Add("mixed", "own", "mixed"),
            Multiply("pass", "mixed", "mixed"),
            builder.linear("output", "mixed", self.output, square, block),
        ]

    def _low_rank(
        self, builder: Builder, role: str, block: int, between: Between = None
    ) -> list[Operation]:
        """A matrix as the product of two, whose inputs are shifted as the role says."""
        shift = shifted(builder, role, self.input, block, "lerp")
        return [shift, *low_rank(builder, role, shift.output, block, between)]

    def _toward_first(self, builder: Builder, block: int) -> list[Operation]:
        """Values go a part of the way to those of the first block."""
        return [
            *low_rank(builder, "first", "value_shift", block),
            Activation("first", "first", "sigmoid"),
            Activation("value", "lack", "scale", -1.0),
            Add(FIRST, "lack", "lack"),
            Multiply("first", "lack", "lack"),
            Add("value", "lack", "value"),
        ]


def low_rank(
    builder: Builder, role: str, source: str, block: int, between: Between = None
) -> list[Operation]:
    """up(between(down)): both stay float, but those that only pass features on."""
    hidden, rank = builder.sizes.hidden, builder.reader.size(f"{role}_rank")
    low, exact = f"{role}_low", role != "pass"
    down = builder.linear(f"{role}_down", source, low, (hidden, rank), block)
    up = builder.linear(f"{role}_up", low, role, (rank, hidden), block)
    bend = [] if between is None else [Activation(low, low, *between)]
    return [replace(down, exact=exact), *bend, replace(up, exact=exact)]


@dataclass(frozen=True)
class SquaredMix:
    """down(activation(up))."""

    input: str = "normed"
    output: str = "mlp"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        sizes = builder.sizes
        shift = shifted(builder, "up", self.input, block, "lerp", flat=True)
        return [
            shift,
            builder.linear("up", shift.output, "inner", (sizes.hidden, sizes.feed_forward), block),
            Activation("inner", "inner", sizes.activation),
            builder.linear("down", "inner", self.output, (sizes.feed_forward, sizes.hidden), block),
        ]


DELTA_MIXED_BLOCK: Block = (
    FirstTaken(),
    Normed("attention_norm"),
    DeltaMix(),
    Added("attended"),
    Normed("mlp_norm"),
    SquaredMix(),
    Added("mlp"),
    FirstPassed(),
)
"""Both halves of RWKV-7, each behind a norm."""
