"""A configuration read through a family's words: sizes, numbers, flags, rotary embeddings.

In: a Family and a checkpoint's configuration. Out: checked values.
Refuses missing, negative or contradictory sizes, naming the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from crumb.architectures.configuration import (
    LIMIT,
    MISSING,
    Configuration,
    as_integer,
    as_number,
    read_flag,
    refuse,
)
from crumb.architectures.rope import read_rope
from crumb.errors import CheckpointError
from crumb.operations.activation import FUNCTIONS
from crumb.operations.places import Buckets
from crumb.operations.rope import Rope

if TYPE_CHECKING:
    from crumb.architectures.family import Family

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

    def size(self, word: str, derived: int | None = None, lowest: int = 1) -> int:
        """A size; `derived` stands for null, and for words that the family has no key for."""
        key, value = self.find(word)
        if derived is not None and (value is None or word not in self.family.keys):
            return derived
        return as_integer(value, key, HIGHEST.get(word, LIMIT), lowest)

    def number(self, word: str, lowest: float = 1e-12, highest: float = 1e12) -> float:
        """A number. Raises: CheckpointError."""
        key, value = self.find(word)
        return as_number(value, key, lowest, highest)

    def optional_number(self, word: str) -> float | None:
        """A number, None for null. Raises: CheckpointError."""
        return None if self.find(word)[1] is None else self.number(word)

    def flag(self, named: bool | str) -> bool:
        """A flag that always holds, or that a key decides. Raises: CheckpointError."""
        if isinstance(named, bool):
            return named
        return read_flag(self.configuration, named, bool(self.family.defaults.get(named, False)))

    @cached_property
    def sizes(self) -> Sizes:
        """The numbers of a configuration, each checked. Raises: CheckpointError."""
        hidden, heads = self.size("hidden"), self.size("heads")
        key_value_heads = self.size("key_value_heads", heads)
        head_dim = self.size("head_dim", hidden // heads or 1)
        derived = self.find("head_dim")[1] in (None, MISSING)
        outer = self.family.fused.outer or 1
        if heads % key_value_heads or heads % outer or (derived and hidden % heads):
            raise CheckpointError(
                "the heads do not divide",
                where="config.json",
                expected="a hidden size that heads divide, and heads that key-value heads"
                f"{f' and {outer}' if outer > 1 else ''} divide",
                found=f"hidden {hidden}, heads {heads}, key-value heads {key_value_heads}",
            )
        return Sizes(
            hidden=hidden,
            blocks=self.size("blocks"),
            heads=heads,
            key_value_heads=key_value_heads,
            head_dim=head_dim,
            feed_forward=self.size("feed_forward", 4 * hidden),
            vocabulary=self.size("vocabulary"),
            positions=self.size("positions"),
            epsilon=self.number("epsilon", highest=1.0),
            activation=self.activation(),
        )

    def activation(self) -> str:
        key, value = self.find("activation")
        if not isinstance(value, str) or value not in FUNCTIONS:
            raise refuse(key, f"one of {', '.join(FUNCTIONS)}", value)
        return value

    def buckets(self, both_ways: bool) -> Buckets:
        """Distances between tokens as attention tells them apart. Raises: CheckpointError."""
        key, value = self.find("buckets")
        count = as_integer(value, key, highest=1024, lowest=4)
        key, value = self.find("farthest")
        return Buckets(count, as_integer(value, key, 4096, lowest=count // 2 + 1), both_ways)

    def rope(self, kind: str | None = None) -> Rope:
        """The rotary embedding; `kind`: of the blocks of this kind, where each has its own.

        Raises: CheckpointError.
        """
        key, scaling = self.find("rope")
        scaling = {} if scaling is None or scaling is MISSING else scaling
        if not isinstance(scaling, Mapping):
            raise refuse(key, "an object", scaling)
        if kind is not None and isinstance(scaling.get(kind), Mapping):
            scaling = scaling[kind]
        key, theta = "rope_theta", scaling.get("rope_theta")
        if theta is None:
            key, theta = self.find("theta")
        dimensions = self.rotary_dimensions(scaling)
        return read_rope(
            scaling,
            dimensions,
            as_number(theta, key, lowest=2.0),
            self.sizes.positions,
            self.configuration.get("original_max_position_embeddings"),
        )

    def rotary_dimensions(self, scaling: Mapping[str, Any]) -> int:
        """How many features of a head rotate: a count, or a share of them."""
        head_dim = self.sizes.head_dim
        if "rotary_dimensions" in self.family.keys:
            key, value = self.find("rotary_dimensions")
            dimensions = as_integer(value, key, head_dim)
        else:
            key, share = self.find("rotary_share")
            if scaling.get("partial_rotary_factor") is not None:
                share = scaling["partial_rotary_factor"]
            dimensions = int(head_dim * as_number(share, key, highest=1.0))
            usual = self.family.defaults["rotary_share"]
            if dimensions != head_dim and usual == 1.0 and not self.family.partial:
                raise refuse(key, "1, as this family rotates whole heads", share)
        if dimensions % 2 or not dimensions:
            if key not in self.configuration and key not in scaling:
                key = self.find("head_dim" if "head_dim" in self.family.keys else "heads")[0]
            raise refuse(key, f"an even number of the {head_dim} features to rotate", dimensions)
        return dimensions
