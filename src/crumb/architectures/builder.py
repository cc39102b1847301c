"""The one builder that turns a Family and a configuration into a Plan.

In: a Family (one file each in this folder) and a checkpoint's configuration. Out: a Plan: the
embedding, a stage for each block whose rows the family gives, the head; before them an encoder's.
Refuses what architectures/reader.py refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from crumb.architectures.block import SEQUENTIAL, Block
from crumb.architectures.configuration import Configuration, read_flag
from crumb.architectures.encoder_decoder import SOURCE, encoder_decoder_stages
from crumb.architectures.family import BlockKind, EncoderPart, Family, Multipliers
from crumb.architectures.plan import Plan, Stage
from crumb.architectures.reader import Reader, Sizes
from crumb.operations.activation import Activation
from crumb.operations.add import Add
from crumb.operations.embed import Embed
from crumb.operations.linear import Linear
from crumb.operations.norm import Norm
from crumb.operations.operation import Operation


@dataclass(frozen=True)
class Builder:
    """Builds the stages of one model."""

    family: Family
    reader: Reader
    sizes: Sizes
    kinds: tuple[BlockKind, ...]
    multipliers: Multipliers

    def has(self, role: str) -> bool:
        """Whether models of this configuration have a tensor of this role."""
        asked = self.family.optional.get(role, True)
        return role in self.family.tensors and self.reader.flag(asked)

    def name(self, role: str, block: int | None = None, kind: str = "weight") -> str:
        return f"{self.family.tensors[role].format(block=block)}.{kind}"

    def bare(self, role: str, block: int) -> str:
        """A tensor whose name has no ending."""
        return self.family.tensors[role].format(block=block)

    def bias(self, role: str, block: int | None = None) -> str | None:
        has_bias = self.reader.flag(self.family.biases.get(role, False))
        return self.name(role, block, "bias") if has_bias else None

    def norm(self, role: str, source: str, output: str, block: int | None = None) -> Norm:
        form, sizes = self.family.norm, self.sizes
        bias = self.name(role, block, "bias") if form.bias else None
        weight, wide = self.name(role, block), sizes.hidden
        epsilon = self.family.epsilon(self.reader, role, block)
        return Norm(source, output, form.kind, weight, bias, epsilon, wide, offset=form.offset)

    def linear(
        self, role: str, source: str, output: str, wide: tuple[int, int], block: int | None = None
    ) -> Linear:
        """wide is (in_features, out_features)."""
        return Linear(source, output, self.name(role, block), self.bias(role, block), *wide)

    def scaled(self, name: str, scale: float) -> list[Operation]:
        """A buffer times a number, in place."""
        return [] if scale == 1.0 else [Activation(name, name, "scale", scale)]

    def block(self, block: int) -> Stage:
        order = self.family.block
        rows: Block = order if isinstance(order, tuple) else order(self.reader, block)
        operations = tuple(operation for row in rows for operation in row.operations(self, block))
        return Stage(f"block.{block}", operations, _inputs(operations), operations[-1].writes)

    def embedding(self) -> Stage:
        sizes, first = self.sizes, self.family.first_position
        operations: list[Operation] = [
            Embed("tokens", "hidden", self.name("embedding"), sizes.vocabulary, sizes.hidden)
        ]
        operations += self.scaled("hidden", self.multipliers.embedding)
        if self.has("embedding_norm"):
            operations.append(self.norm("embedding_norm", "hidden", "hidden"))
        inputs: tuple[str, ...] = ("tokens",)
        if self.has("positions"):
            inputs = ("tokens", "positions")
            table, rows = self.name("positions"), sizes.positions + first
            operations += [
                Embed("positions", "place", table, rows, sizes.hidden, first),
                Add("hidden", "place", "hidden"),
            ]
        return Stage("embedding", tuple(operations), inputs, ("hidden",))

    def head(self) -> Stage:
        sizes, scales = self.sizes, self.multipliers
        tied = read_flag(self.reader.configuration, "tie_word_embeddings", self.family.tied)
        weight = self.name("embedding" if tied else "head")
        operations: list[Operation] = []
        last = "hidden"
        if self.has("final_norm"):
            operations.append(self.norm("final_norm", "hidden", "normed"))
            last = "normed"
        operations += self.scaled(last, scales.head)
        operations.append(
            Linear(last, "logits", weight, self.bias("head"), sizes.hidden, sizes.vocabulary)
        )
        operations += self.scaled("logits", scales.logits)
        if scales.logit_cap is not None:
            operations.append(Activation("logits", "logits", "soft_cap", scales.logit_cap))
        return Stage("head", tuple(operations), ("hidden",), ("logits",))


def _inputs(operations: tuple[Operation, ...]) -> tuple[str, ...]:
    """Buffers that are read before they are written, in the order of their first use."""
    inputs, written = dict[str, None](), set[str]()
    for operation in operations:
        inputs |= dict.fromkeys(name for name in operation.reads if name not in written)
        written |= {*operation.writes}
    return tuple(inputs)


def reader_of(family: Family, configuration: Configuration) -> Reader:
    """A family's view of a configuration, whatever version wrote it."""
    restated = family.restate(configuration)
    return Reader(family.of_configuration(family, restated), restated)


def build_plan(family: Family, configuration: Configuration) -> Plan:
    """The Plan of one model of a family. Raises: CheckpointError."""
    reader = reader_of(family, configuration)
    family, sizes = reader.family, reader.sizes
    if family.encoder is not None:
        stages = _encoder_and_decoder(family, family.encoder, reader)
        return Plan(family.model_type, sizes.vocabulary, sizes.positions, stages, (SOURCE,))
    builder = Builder(family, reader, sizes, family.kinds(reader), family.multipliers(reader))
    blocks = [builder.block(index) for index in range(sizes.blocks)]
    stages = (builder.embedding(), *blocks, builder.head())
    return Plan(family.model_type, sizes.vocabulary, sizes.positions, stages)


def _encoder_and_decoder(family: Family, part: EncoderPart, reader: Reader) -> tuple[Stage, ...]:
    sizes, numbers = reader.sizes, family.multipliers(reader)
    reads = replace(family, tensors=part.tensors, block=SEQUENTIAL)
    encoder = Builder(reads, reader, sizes, part.kinds(reader), numbers)
    depth = replace(sizes, blocks=reader.size("decoder_blocks", sizes.blocks))
    decoder = Builder(family, reader, depth, family.kinds(reader), numbers)
    return encoder_decoder_stages(encoder, decoder)
