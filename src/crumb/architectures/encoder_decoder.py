"""Models that read one text whole and write another: an encoder's stages, then a decoder's.

In: a Builder for each half. Out: the stages of a Plan whose input "source" is the text that is
read. Stages that run once make "memory" of it, and of that the keys and values of each decoder
block's cross attention. Refuses what architectures/reader.py refuses.
Source: arXiv 1706.03762, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crumb.architectures.block import Added, Block, FeedForward, Normed, SelfAttention
from crumb.architectures.plan import Stage
from crumb.operations.attention import Attention
from crumb.operations.operation import Operation

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder

SOURCE, ENCODED, MEMORY = "source", "encoded", "memory"


def memory_of(block: int) -> tuple[str, str]:
    """Buffers of the keys and values that a decoder block's cross attention reads."""
    return f"{MEMORY}.{block}.key", f"{MEMORY}.{block}.value"


@dataclass(frozen=True)
class CrossAttention:
    """Queries of the input; keys and values are those of the source, whatever is written."""

    input: str = "normed"
    output: str = "crossed"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        sizes = builder.sizes
        scale = builder.multipliers.attention
        inner = sizes.heads * sizes.head_dim
        return [
            builder.linear("cross_query", self.input, "query", (sizes.hidden, inner), block),
            Attention(
                "query",
                *memory_of(block),
                "mixed",
                sizes.heads,
                sizes.heads,
                sizes.head_dim,
                sizes.head_dim**-0.5 if scale is None else scale,
                causal=False,
                window=None,
                state=None,
            ),
            builder.linear("cross_output", "mixed", self.output, (inner, sizes.hidden), block),
        ]


DECODER_BLOCK: Block = (
    Normed("attention_norm"),
    SelfAttention(),
    Added("attended"),
    Normed("cross_norm"),
    CrossAttention(),
    Added("crossed"),
    Normed("mlp_norm"),
    FeedForward(),
    Added("mlp"),
)


def encoder_decoder_stages(encoder: Builder, decoder: Builder) -> tuple[Stage, ...]:
    """All stages: what runs once stands before what first reads it."""
    blocks = [_of_encoder(encoder, block) for block in range(encoder.sizes.blocks)]
    norm = encoder.norm("final_norm", ENCODED, MEMORY)
    stages = [
        Stage(SOURCE, _source(encoder), (SOURCE,), (ENCODED,), once=True),
        *blocks,
        Stage(MEMORY, (norm,), (ENCODED,), (MEMORY,), once=True),
        decoder.embedding(),
    ]
    for block in range(decoder.sizes.blocks):
        stages += [_keys_and_values(decoder, block), decoder.block(block)]
    return (*stages, decoder.head())


def _source(encoder: Builder) -> tuple[Operation, ...]:
    names = {"tokens": SOURCE, "hidden": ENCODED}
    return tuple(each.renamed(names) for each in encoder.embedding().operations)


def _of_encoder(encoder: Builder, block: int) -> Stage:
    own = encoder.block(block)
    operations = tuple(each.renamed({"hidden": ENCODED}) for each in own.operations)
    return Stage(f"encoder.{block}", operations, (ENCODED,), (ENCODED,), once=True)


def _keys_and_values(decoder: Builder, block: int) -> Stage:
    sizes, names = decoder.sizes, memory_of(block)
    width = (sizes.hidden, sizes.heads * sizes.head_dim)
    operations = tuple(
        decoder.linear(role, MEMORY, name, width, block)
        for role, name in zip(("cross_key", "cross_value"), names, strict=True)
    )
    return Stage(f"{MEMORY}.{block}", operations, (MEMORY,), names, once=True)
