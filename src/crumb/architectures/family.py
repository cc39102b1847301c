"""A family of models as data, and the one builder that turns it into a Plan.

In: a Family (one file each in this folder) and a checkpoint's configuration. Out: a Plan.
Refuses a configuration with missing, negative or contradictory sizes, naming the key.
The generic block: norm, attention, norm, MLP; residuals one after the other or in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crumb.architectures.plan import (
    ACTIVATIONS,
    Activation,
    Add,
    Attention,
    Embed,
    Linear,
    Multiply,
    Norm,
    Operation,
    Plan,
    Rotary,
    Split,
    Stage,
)
from crumb.architectures.rope import read_rope
from crumb.errors import CheckpointError

Configuration = Mapping[str, Any]
Windows = tuple[int | None, ...]  # one per block


def no_windows(_: Configuration, blocks: int) -> Windows:
    """Every block attends to all earlier tokens."""
    return (None,) * blocks


@dataclass(frozen=True)
class FusedQkv:
    """How one matrix holds query, key and value: rows viewed as (outer, 3, inner)."""

    order: tuple[str, str, str] = ("query", "key", "value")
    outer: int | None = None  # None: one per head


@dataclass(frozen=True)
class Family:
    """Configuration keys, tensor names and flags; everything that differs between families."""

    model_type: str
    keys: Mapping[str, str | tuple[str, ...]]  # our word -> its key, or keys in order of preference
    tensors: Mapping[str, str]  # role -> tensor name with {block}, without .weight
    norm: str = "rms"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, bool | str] = field(default_factory=dict)  # role -> always, or a key
    gated: bool = True
    fused: FusedQkv | None = None
    rotary: str | None = "half"
    rotary_dimensions: Callable[[Configuration, int], int] = lambda _, head_dim: head_dim
    learned_positions: bool = False
    parallel: Callable[[Configuration], bool] = lambda _: False
    shared_norm: bool = False  # attention and MLP read the same normed input
    attention_scale: bool = True
    windows: Callable[[Configuration, int], Windows] = no_windows
    tied: bool = False  # what a configuration that does not say means


LIMIT = 1 << 24
"""No size in a configuration may exceed this."""


@dataclass(frozen=True)
class Sizes:
    """The checked numbers of one model."""

    hidden: int
    blocks: int
    heads: int
    key_value_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    positions: int
    epsilon: float
    activation: str


def read_sizes(family: Family, configuration: Configuration) -> Sizes:
    """The numbers of a configuration, each checked. Raises: CheckpointError."""

    def find(word: str, default: Any = None) -> Any:
        keys = family.keys.get(word, ())
        for key in (keys,) if isinstance(keys, str) else keys:
            if configuration.get(key) is not None:
                return configuration[key]
        return family.defaults.get(word, default)

    def size(word: str, default: int | None = None) -> int:
        value = find(word, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMIT:
            raise CheckpointError(
                f"the configuration has no usable {word}",
                where=f"config.json: {family.keys.get(word, word)}",
                expected=f"an integer from 1 to {LIMIT}",
                found=repr(value),
            )
        return value

    hidden, heads = size("hidden"), size("heads")
    key_value_heads = size("key_value_heads", heads)
    if heads % key_value_heads or (find("head_dim") is None and hidden % heads):
        raise CheckpointError(
            "the heads do not divide",
            where="config.json",
            expected="key-value heads that divide heads, and heads that divide the hidden size",
            found=f"hidden {hidden}, heads {heads}, key-value heads {key_value_heads}",
        )
    activation = find("activation")
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            "unknown activation",
            where=f"config.json: {family.keys['activation']}",
            expected=f"one of {', '.join(ACTIVATIONS)}",
            found=repr(activation),
        )
    return Sizes(
        hidden=hidden,
        blocks=size("blocks"),
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=size("head_dim", hidden // heads),
        feed_forward=size("feed_forward", 4 * hidden),
        vocabulary=size("vocabulary"),
        positions=size("positions"),
        epsilon=float(find("epsilon", 1e-5)),
        activation=activation,
    )


@dataclass(frozen=True)
class Builder:
    """Builds the stages of one model."""

    family: Family
    configuration: Configuration
    sizes: Sizes

    def name(self, role: str, block: int | None = None, kind: str = "weight") -> str:
        return f"{self.family.tensors[role].format(block=block)}.{kind}"

    def bias(self, role: str, block: int | None = None) -> str | None:
        given = self.family.biases.get(role, False)
        if isinstance(given, str):
            given = bool(self.configuration.get(given, self.family.defaults.get(given, False)))
        return self.name(role, block, "bias") if given else None

    def norm(self, role: str, source: str, output: str, block: int | None = None) -> Norm:
        bias = self.name(role, block, "bias") if self.family.norm == "layer" else None
        weight, sizes = self.name(role, block), self.sizes
        return Norm(source, output, self.family.norm, weight, bias, sizes.epsilon, sizes.hidden)

    def linear(
        self, role: str, source: str, output: str, wide: tuple[int, int], block: int | None = None
    ) -> Linear:
        """wide is (in_features, out_features)."""
        return Linear(source, output, self.name(role, block), self.bias(role, block), *wide)

    def projections(self, block: int) -> list[Operation]:
        sizes, fused = self.sizes, self.family.fused
        query_width = sizes.heads * sizes.head_dim
        if fused is not None:
            outer = fused.outer or sizes.heads
            project = self.linear(
                "qkv", "normed", "qkv", (sizes.hidden, 3 * query_width), block
            )
            return [project, Split("qkv", fused.order, outer, query_width // outer)]
        key_width = sizes.key_value_heads * sizes.head_dim
        widths = {"query": query_width, "key": key_width, "value": key_width}
        return [
            self.linear(role, "normed", role, (sizes.hidden, width), block)
            for role, width in widths.items()
        ]

    def attention(self, block: int, window: int | None) -> list[Operation]:
        sizes, family = self.sizes, self.family
        operations = self.projections(block)
        if family.rotary is not None:
            dimensions = family.rotary_dimensions(self.configuration, sizes.head_dim)
            rope = read_rope(self.configuration, dimensions, family.defaults.get("theta", 10000.0))
            for role, heads in (("query", sizes.heads), ("key", sizes.key_value_heads)):
                operations.append(Rotary(role, "positions", role, heads, family.rotary, rope))
        scale = 1.0 / math.sqrt(sizes.head_dim) if family.attention_scale else 1.0
        mixed = Attention(
            "query",
            "key",
            "value",
            "mixed",
            sizes.heads,
            sizes.key_value_heads,
            sizes.head_dim,
            scale,
            causal=True,
            window=window,
            state=f"block.{block}",
        )
        width = (sizes.heads * sizes.head_dim, sizes.hidden)
        return [*operations, mixed, self.linear("output", "mixed", "attended", width, block)]

    def mlp(self, block: int) -> list[Operation]:
        wide, sizes = (self.sizes.hidden, self.sizes.feed_forward), self.sizes
        down = self.linear("down", "inner", "mlp", (wide[1], wide[0]), block)
        up = self.linear("up", "normed", "up", wide, block)
        if not self.family.gated:
            return [up, Activation("up", "inner", sizes.activation), down]
        return [
            self.linear("gate", "normed", "gate", wide, block),
            up,
            Activation("gate", "gate", sizes.activation),
            Multiply("gate", "up", "inner"),
            down,
        ]

    def block(self, block: int, window: int | None) -> Stage:
        attention, mlp = self.attention(block, window), self.mlp(block)
        first = self.norm("attention_norm", "hidden", "normed", block)
        second: list[Operation] = []
        if not self.family.shared_norm:
            second = [self.norm("mlp_norm", "hidden", "normed", block)]
        add_attention = Add("hidden", "attended", "hidden")
        add_mlp = Add("hidden", "mlp", "hidden")
        if self.family.parallel(self.configuration):
            operations = [first, *attention, *second, *mlp, add_attention, add_mlp]
        else:
            operations = [first, *attention, add_attention, *second, *mlp, add_mlp]
        return Stage(f"block.{block}", tuple(operations), ("hidden",), ("hidden",))

    def embedding(self) -> Stage:
        sizes = self.sizes
        weight = self.name("embedding")
        operations: list[Operation] = [
            Embed("tokens", "hidden", weight, sizes.vocabulary, sizes.hidden)
        ]
        if self.family.learned_positions:
            positions = self.name("positions")
            operations += [
                Embed("positions", "place", positions, sizes.positions, sizes.hidden),
                Add("hidden", "place", "hidden"),
            ]
        return Stage("embedding", tuple(operations), ("tokens",), ("hidden",))

    def head(self) -> Stage:
        sizes = self.sizes
        tied = bool(self.configuration.get("tie_word_embeddings", self.family.tied))
        weight = self.name("embedding" if tied else "head")
        logits = Linear(
            "normed", "logits", weight, self.bias("head"), sizes.hidden, sizes.vocabulary
        )
        operations = (self.norm("final_norm", "hidden", "normed"), logits)
        return Stage("head", operations, ("hidden",), ("logits",))


def build_plan(family: Family, configuration: Configuration) -> Plan:
    """The Plan of one model of a family. Raises: CheckpointError."""
    sizes = read_sizes(family, configuration)
    builder = Builder(family, configuration, sizes)
    windows = family.windows(configuration, sizes.blocks)
    blocks = [builder.block(index, window) for index, window in enumerate(windows)]
    stages = (builder.embedding(), *blocks, builder.head())
    return Plan(family.model_type, sizes.vocabulary, sizes.positions, stages)
