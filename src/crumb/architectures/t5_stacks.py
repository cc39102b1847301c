"""The two stacks of the T5 families: their tensors, their buckets, how configurations spell them.

In: a configuration as transformers 3 to 5 write it. Out: one spelling; names by role; kinds of
blocks. Refuses an MLP that is neither plain nor gated.
Source: arXiv 1910.10683, section 2.1; arXiv 2002.05202 for the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from crumb.architectures.configuration import Configuration, read_flag, refuse
from crumb.architectures.family import BlockKind, Family
from crumb.architectures.reader import Reader

MLP, SCALED, TIED = "feed_forward_proj", "scale_decoder_outputs", "tie_word_embeddings"
CROSS = "decoder.block.{block}.layer.1."


def restate(configuration: Configuration) -> Configuration:
    """One word says whether the MLP is gated and by what; another whether the head is scaled."""
    words = configuration.get(MLP, "relu")
    gate, _, name = words.rpartition("-") if isinstance(words, str) else ("", "", words)
    if gate not in ("", "gated"):
        raise refuse(MLP, "a function, or gated- and a function", words)
    untied = not read_flag(configuration, TIED, True)
    scaled = read_flag(configuration, SCALED, not untied)
    name = "gelu_new" if words == "gated-gelu" else name
    return {**configuration, SCALED: scaled, TIED: scaled and not untied, MLP: name, "gate": gate}


def plain_or_gated(family: Family, configuration: Configuration) -> Family:
    """The family with the MLP of a configuration."""
    if configuration["gate"] or family.encoder is None:
        return family
    encoder = replace(family.encoder, tensors=_plain(family.encoder.tensors))
    return replace(family, encoder=encoder, tensors=_plain(family.tensors))


def _plain(tensors: Mapping[str, str]) -> dict[str, str]:
    """Tensors of an MLP without a gate."""
    others = {role: name for role, name in tensors.items() if role != "gate"}
    return others | {"up": others["up"].removesuffix("_1")}


def stack_of(stack: str, mlp: int) -> dict[str, str]:
    """Tensors of an encoder's or a decoder's blocks, whose MLP is the layer of this number."""
    block = f"{stack}.block.{{block}}.layer."
    attention, feed_forward = f"{block}0.SelfAttention", f"{block}{mlp}.DenseReluDense"
    return {
        "embedding": "shared",
        "attention_norm": f"{block}0.layer_norm",
        **{role: f"{attention}.{role[0]}" for role in ("query", "key", "value", "output")},
        "bias": f"{attention}.relative_attention_bias",
        "mlp_norm": f"{block}{mlp}.layer_norm",
        "gate": f"{feed_forward}.wi_0",
        "up": f"{feed_forward}.wi_1",
        "down": f"{feed_forward}.wo",
        "final_norm": f"{stack}.final_layer_norm",
    }


def kinds(stack: str, every: bool = False) -> Callable[[Reader], tuple[BlockKind, ...]]:
    """Blocks of a stack, whose first one has the table of buckets, or `every` one its own."""
    name, reads = stack_of(stack, 0)["bias"], stack == "encoder"

    def of(reader: Reader) -> tuple[BlockKind, ...]:
        depth = reader.size("blocks" if reads else "decoder_blocks", reader.sizes.blocks)
        kind = BlockKind(None, causal=not reads, buckets=reader.buckets(both_ways=reads))
        tables = (f"{name.format(block=block * every)}.weight" for block in range(depth))
        return tuple(replace(kind, bias=table) for table in tables)

    return of
