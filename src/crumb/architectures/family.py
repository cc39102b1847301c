"""A family of models as data: its words, its tensors, the order of operations of its blocks.

In: nothing. Out: Family, and the records that its fields hold. One file each in this folder defines
FAMILY; architectures/builder.py makes a Plan of it and a configuration.
What a role of `tensors` is not there for, a model of the family does not have: a "gate" makes the
MLP gated, a "query_norm" normalises heads, "positions" are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crumb.architectures.block import SEQUENTIAL, Block
from crumb.architectures.configuration import Configuration
from crumb.architectures.reader import Reader
from crumb.operations.places import Buckets, Slopes, Temperature
from crumb.operations.rope import Rope


@dataclass(frozen=True)
class NormForm:
    """How a family normalises."""

    kind: str  # "rms" or "layer", of operations/norm.py
    bias: bool = False
    offset: float = 0.0  # added to the weight


@dataclass(frozen=True)
class HeadNorm(NormForm):
    """How queries and keys are normalised before they rotate, where there is a "query_norm"."""

    whole: bool = False  # all heads together; else each alone
    per_channel: bool = False  # each head has weights of its own


RMS = NormForm("rms")
LAYER = NormForm("layer", bias=True)
LAYER_WITHOUT_BIAS = NormForm("layer")
RMS_OF_ONE_MORE = NormForm("rms", offset=1.0)


@dataclass(frozen=True)
class Fused:
    """How one matrix holds query, key and value, where there is a "qkv".

    Its rows are viewed as (outer, parts): each outer has its share of the queries, of the keys and
    of the values behind each other.
    """

    order: tuple[str, ...] = ("query", "key", "value")
    outer: int | None = None  # None: one for each key-value head


@dataclass(frozen=True)
class Stacked:
    """A tensor that holds one of each expert's: (experts, parts behind each other, ...).

    checkpoints/stacked_experts.py takes it apart when a file has it.
    """

    name: str  # as the file has it, with {block}
    roles: tuple[str, ...]  # of its parts
    kind: str = "weight"  # of the roles' tensors, or "bias"
    transposed: bool = False  # (experts, in_features, parts): columns are outputs
    interleaved: bool = False  # each part takes turns with the others


@dataclass(frozen=True)
class BlockKind:
    """What may differ between the blocks of one model."""

    rope: Rope | None  # None: nothing rotates
    window: int | None = None  # tokens
    scale: float = 1.0  # of attention scores, beside that of all blocks
    slopes: Slopes | None = None
    temperature: Temperature | None = None
    chunk: int | None = None  # tokens
    normed: bool = False  # heads of queries and keys, once they rotated, without weights
    causal: bool = True
    buckets: Buckets | None = None
    bias: str | None = None  # of the buckets: a tensor


@dataclass(frozen=True)
class Multipliers:
    """Numbers that a family multiplies with on the way, and caps; 1 and None do nothing."""

    embedding: float = 1.0
    attention: float | None = None  # of scores; None: head_dim ** -0.5
    residual: float = 1.0  # of what a block adds
    head: float = 1.0  # of what the head reads
    logits: float = 1.0
    score_cap: float | None = None
    clip: float | None = None  # of queries, keys and values
    logit_cap: float | None = None


@dataclass(frozen=True)
class EncoderPart:
    """What differs between the stages that read a source and those that write."""

    tensors: Mapping[str, str]  # as the family's
    kinds: Callable[[Reader], tuple[BlockKind, ...]]


def alike(reader: Reader) -> tuple[BlockKind, ...]:
    """All blocks attend to all earlier tokens, whose positions rotate."""
    return (BlockKind(reader.rope()),) * reader.sizes.blocks


def no_rotation(reader: Reader) -> tuple[BlockKind, ...]:
    """All blocks attend to all earlier tokens, and nothing rotates."""
    return (BlockKind(None),) * reader.sizes.blocks


def usual_epsilon(reader: Reader, role: str, block: int | None) -> float:
    """All norms of a model have one."""
    del role, block
    return reader.sizes.epsilon


def as_it_is(configuration: Configuration) -> Configuration:
    """A configuration that needs no other spelling."""
    return configuration


@dataclass(frozen=True)
class Family:
    """Configuration keys, tensor names, order of operations; all that differs between families."""

    model_type: str
    keys: Mapping[str, str | tuple[str, ...]]  # our word -> its key, or keys in order of preference
    tensors: Mapping[str, str]  # role -> tensor name with {block}, without .weight
    defaults: Mapping[str, Any] = field(default_factory=dict)  # word or flag -> when it is missing
    biases: Mapping[str, bool | str] = field(default_factory=dict)  # role -> always, or a flag
    optional: Mapping[str, str] = field(default_factory=dict)  # role -> the flag that asks for it
    norm: NormForm = RMS
    block: Block | Callable[[Reader, int], Block] = SEQUENTIAL  # of all blocks, or of each
    fused: Fused = Fused()
    rotary: str = "half"
    partial: bool = False  # a part of each head may rotate, though the whole is usual
    head_norm: HeadNorm = HeadNorm("rms")
    kinds: Callable[[Reader], tuple[BlockKind, ...]] = alike
    multipliers: Callable[[Reader], Multipliers] = lambda reader: Multipliers()
    epsilon: Callable[[Reader, str, int | None], float] = usual_epsilon  # of a role, in a block
    restate: Callable[[Configuration], Configuration] = as_it_is  # older spellings as today's
    first_position: int = 0  # rows of "positions" before that of the first token
    stacked: tuple[Stacked, ...] = ()  # how files may hold experts in place of one tensor each
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """How older files may hold roles: one tensor's name -> those of its rows."""
    transposed: tuple[str, ...] = ()  # roles whose floats lie in files as (inputs, outputs)
    tied: bool = False  # what a configuration that does not say means
    encoder: EncoderPart | None = None  # where a source is read before anything is written
    of_configuration: Callable[[Family, Configuration], Family] = lambda family, _: family

    @property
    def gated(self) -> bool:
        return "gate" in self.tensors or "gate_up" in self.tensors
