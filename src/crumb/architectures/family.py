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

from crumb.architectures.configuration import (
    LIMIT,
    MISSING,
    Configuration,
    as_integer,
    as_number,
    read_flag,
    refuse,
)
from crumb.architectures.plan import Plan, Stage
from crumb.architectures.rope import read_rope
from crumb.errors import CheckpointError
from crumb.operations.activation import FUNCTIONS, Activation
from crumb.operations.add import Add
from crumb.operations.attention import Attention
from crumb.operations.embed import Embed
from crumb.operations.linear import Linear
from crumb.operations.multiply import Multiply
from crumb.operations.norm import Norm
from crumb.operations.operation import Operation
from crumb.operations.rope import Rope
from crumb.operations.rotary import Rotary
from crumb.operations.split import Split

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
    defaults: Mapping[str, Any] = field(default_factory=dict)  # word or flag -> when it is missing
    biases: Mapping[str, bool | str] = field(default_factory=dict)  # role -> always, or a flag
    gated: bool = True
    fused: FusedQkv | None = None
    rotary: str | None = "half"
    learned_positions: bool = False
    parallel: bool | str = False  # always, or a flag: attention and MLP both read the block's input
    shared_norm: bool = False  # attention and MLP read the same normed input
    attention_scale: bool = True
    windows: Callable[[Configuration, int], Windows] = no_windows
    tied: bool = False  # what a configuration that does not say means


HIGHEST = {"blocks": 1024}
"""Words whose limit is lower than LIMIT: a claimed depth costs memory before any file is read."""


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


@dataclass(frozen=True)
class Reader:
    """A configuration read through a family's keys."""

    family: Family
    configuration: Configuration

    def find(self, word: str) -> tuple[str, Any]:
        """The key and value of a word: the first key with a value, null, or the default."""
        named = self.family.keys.get(word, ())
        keys = (named,) if isinstance(named, str) else named
        present = [key for key in keys if key in self.configuration]
        for key in present:
            if self.configuration[key] is not None:
                return key, self.configuration[key]
        if present:
            return present[0], None
        return keys[0] if keys else word, self.family.defaults.get(word, MISSING)

    def size(self, word: str, derived: int | None = None) -> int:
        """A size; `derived` stands for null, and for words that the family has no key for."""
        key, value = self.find(word)
        if derived is not None and (value is None or word not in self.family.keys):
            return derived
        return as_integer(value, key, HIGHEST.get(word, LIMIT))

    def sizes(self) -> Sizes:
        """The numbers of a configuration, each checked. Raises: CheckpointError."""
        hidden, heads = self.size("hidden"), self.size("heads")
        key_value_heads = self.size("key_value_heads", heads)
        head_dim = self.size("head_dim", hidden // heads or 1)
        derived = self.find("head_dim")[1] in (None, MISSING)
        outer = self.family.fused.outer or heads if self.family.fused else heads
        if heads % key_value_heads or heads % outer or (derived and hidden % heads):
            raise CheckpointError(
                "the heads do not divide",
                where="config.json",
                expected="a hidden size that heads divide, and heads that key-value heads"
                f"{f' and {outer}' if outer != heads else ''} divide",
                found=f"hidden {hidden}, heads {heads}, key-value heads {key_value_heads}",
            )
        epsilon_key, epsilon = self.find("epsilon")
        return Sizes(
            hidden=hidden,
            blocks=self.size("blocks"),
            heads=heads,
            key_value_heads=key_value_heads,
            head_dim=head_dim,
            feed_forward=self.size("feed_forward", 4 * hidden),
            vocabulary=self.size("vocabulary"),
            positions=self.size("positions"),
            epsilon=as_number(epsilon, epsilon_key, highest=1.0),
            activation=self.activation(),
        )

    def activation(self) -> str:
        key, value = self.find("activation")
        if not isinstance(value, str) or value not in FUNCTIONS:
            raise refuse(key, f"one of {', '.join(FUNCTIONS)}", value)
        return value

    def rope(self, sizes: Sizes) -> Rope | None:
        """The rotary embedding, None in families without. Raises: CheckpointError."""
        if self.family.rotary is None:
            return None
        key, given = self.find("rope")
        given = {} if given is None or given is MISSING else given
        if not isinstance(given, Mapping):
            raise refuse(key, "an object", given)
        theta = given.get("rope_theta")
        dimensions = self.rotary_dimensions(given, sizes.head_dim)
        return read_rope(
            given,
            dimensions,
            as_number(self.find("theta")[1] if theta is None else theta, "rope_theta", lowest=2.0),
            sizes.positions,
            self.configuration.get("original_max_position_embeddings"),
        )

    def rotary_dimensions(self, given: Mapping[str, Any], head_dim: int) -> int:
        """How many features of a head rotate: a count, or a share of them."""
        if "rotary_dimensions" in self.family.keys:
            key, value = self.find("rotary_dimensions")
            dimensions = as_integer(value, key, head_dim)
        else:
            key, share = self.find("rotary_share")
            if given.get("partial_rotary_factor") is not None:
                share = given["partial_rotary_factor"]
            dimensions = int(head_dim * as_number(share, key, highest=1.0))
            if dimensions != head_dim and self.family.defaults["rotary_share"] == 1.0:
                raise refuse(key, "1, as this family rotates whole heads", share)
        if dimensions % 2 or not dimensions:
            raise refuse(key, f"an even number of the {head_dim} features to rotate", dimensions)
        return dimensions

    def flag(self, given: bool | str) -> bool:
        """A flag that always holds, or that a key decides."""
        if isinstance(given, bool):
            return given
        return read_flag(self.configuration, given, bool(self.family.defaults.get(given, False)))


@dataclass(frozen=True)
class Builder:
    """Builds the stages of one model."""

    family: Family
    reader: Reader
    sizes: Sizes
    rope: Rope | None

    def name(self, role: str, block: int | None = None, kind: str = "weight") -> str:
        return f"{self.family.tensors[role].format(block=block)}.{kind}"

    def bias(self, role: str, block: int | None = None) -> str | None:
        given = self.reader.flag(self.family.biases.get(role, False))
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
            project = self.linear("qkv", "normed", "qkv", (sizes.hidden, 3 * query_width), block)
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
        if family.rotary is not None and self.rope is not None:
            for role, heads in (("query", sizes.heads), ("key", sizes.key_value_heads)):
                operations.append(Rotary(role, "positions", role, heads, family.rotary, self.rope))
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
        if self.reader.flag(self.family.parallel):
            operations = [first, *attention, *second, *mlp, add_attention, add_mlp]
        else:
            operations = [first, *attention, add_attention, *second, *mlp, add_mlp]
        inputs = ("hidden",) if self.rope is None else ("hidden", "positions")
        return Stage(f"block.{block}", tuple(operations), inputs, ("hidden",))

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
        inputs = ("tokens", "positions") if self.family.learned_positions else ("tokens",)
        return Stage("embedding", tuple(operations), inputs, ("hidden",))

    def head(self) -> Stage:
        sizes = self.sizes
        tied = read_flag(self.reader.configuration, "tie_word_embeddings", self.family.tied)
        weight = self.name("embedding" if tied else "head")
        logits = Linear(
            "normed", "logits", weight, self.bias("head"), sizes.hidden, sizes.vocabulary
        )
        operations = (self.norm("final_norm", "hidden", "normed"), logits)
        return Stage("head", operations, ("hidden",), ("logits",))


def build_plan(family: Family, configuration: Configuration) -> Plan:
    """The Plan of one model of a family. Raises: CheckpointError."""
    reader = Reader(family, configuration)
    sizes = reader.sizes()
    builder = Builder(family, reader, sizes, reader.rope(sizes))
    windows = family.windows(configuration, sizes.blocks)
    blocks = [builder.block(index, window) for index, window in enumerate(windows)]
    stages = (builder.embedding(), *blocks, builder.head())
    return Plan(family.model_type, sizes.vocabulary, sizes.positions, stages)
