"""The first half of an RWKV-6 block: token shifts that the tokens decide, and the recurrence.

In: roles of a family's tensors, words "wkv_dim", "mix_rank" and "pace_rank". Out: operations.
What a matrix reads lies a part of the way from this token to the last; how much, feature by
feature, is a weight of its own and what a low rank makes of the tokens. Low ranks stay float.
Refuses widths that differ. Source: arXiv 2404.05892, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crumb.architectures.block import Added, Block, Normed
from crumb.architectures.configuration import MISSING, Configuration, as_integer, refuse
from crumb.architectures.time_mix import ChannelMix, shifted
from crumb.architectures.wkv_mix import head_norm, wkv_sizes
from crumb.operations.activation import Activation
from crumb.operations.add import Add
from crumb.operations.conv import Conv
from crumb.operations.linear import Linear
from crumb.operations.multiply import Multiply
from crumb.operations.operation import Operation
from crumb.operations.recurrence import Recurrence
from crumb.operations.split import Split

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder

DRIFTING = ("pace", "key", "value", "receptance", "pass")
"""Roles whose inputs drift, in the order in which files stack their low ranks."""

WIDE = 4096
"""The width from which published models have low ranks of twice the size."""


def _tanh(name: str) -> Activation:
    return Activation(name, name, "soft_cap", 1.0)


def finch_widths(configuration: Configuration) -> Configuration:
    """A configuration with the widths that it leaves out. Raises: CheckpointError."""
    told: dict[str, Any] = dict(configuration)
    hidden = as_integer(told.get("hidden_size", MISSING), "hidden_size")
    if told.get("attention_hidden_size") not in (None, hidden):
        raise refuse(
            "attention_hidden_size", f"{hidden}, as hidden_size", told["attention_hidden_size"]
        )
    if told.get("intermediate_size") is None:
        told["intermediate_size"] = int(hidden * 3.5) // 32 * 32
    usual = 64 if hidden >= WIDE else 32
    for key, rank in (("lora_rank_tokenshift", usual), ("lora_rank_decay", 2 * usual)):
        told[key] = rank if told.get(key) is None else told[key]
    return told


@dataclass(frozen=True)
class DriftingMix:
    """output(silu(gate) * norm(what queries read of the state and of their token))."""

    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        (heads, dim), sizes = wkv_sizes(builder.reader), builder.sizes
        hidden, rank = sizes.hidden, builder.reader.size("pace_rank")
        own_epsilon = builder.reader.optional_number("head_epsilon")
        divisor = builder.reader.number("head_divisor")
        epsilon = sizes.epsilon * divisor**2 if own_epsilon is None else own_epsilon
        weights = tuple(builder.bare(role, block) for role in ("decay", "bonus"))
        slot, inputs = f"block.{block}.wkv", ("query", "key", "value", "pace")
        names = {"receptance": "query", "key": "key", "value": "value", "pass": "pass"}
        return [
            *self._shifts(builder, block),
            self._bare(builder, "decay_down", block, ("pace_shift", "decay_low"), (hidden, rank)),
            _tanh("decay_low"),
            self._bare(builder, "decay_up", block, ("decay_low", "pace"), (rank, hidden)),
            *(
                builder.linear(role, f"{role}_shift", name, (hidden, hidden), block)
                for role, name in names.items()
            ),
            Recurrence(inputs, "mixed", "wkv6", heads, heads, dim, dim, weights, slot),
            head_norm(builder, block, heads, epsilon),
            Activation("pass", "pass", "silu"),
            Multiply("pass", "mixed", "mixed"),
            builder.linear("output", "mixed", self.output, (hidden, hidden), block),
        ]

    def _shifts(self, builder: Builder, block: int) -> list[Operation]:
        """The inputs of all matrices, each a buffer."""
        hidden, rank = builder.sizes.hidden, builder.reader.size("mix_rank")
        wide, parts = len(DRIFTING) * rank, tuple(f"{role}_low" for role in DRIFTING)
        change = Conv(
            self.input, "change", None, None, hidden, 2, "change", f"block.{block}.change"
        )
        operations: list[Operation] = [
            change,
            shifted(builder, "mix", self.input, block, "lerp"),
            self._bare(builder, "mix_down", block, ("mix_shift", "mix_low"), (hidden, wide)),
            _tanh("mix_low"),
            Split("mix_low", parts, 1, (rank,) * len(parts)),
        ]
        pattern = builder.bare("mix_up", block)
        for place, (role, low) in enumerate(zip(DRIFTING, parts, strict=True)):
            weight = f"{pattern.format(expert=place)}.weight"
            shift = shifted(builder, role, self.input, block, "lerp")
            operations += [
                shift,
                Linear(low, "drift", weight, None, rank, hidden, exact=True),
                Multiply("change", "drift", "drift"),
                Add(shift.output, "drift", shift.output),
            ]
        return operations

    def _bare(
        self, builder: Builder, role: str, block: int, names: tuple[str, str], wide: tuple[int, int]
    ) -> Linear:
        """A matrix whose name has no ending; it stays float."""
        return Linear(*names, builder.bare(role, block), None, *wide, exact=True)


@dataclass(frozen=True)
class Halved:
    """The stream, halved behind every so many blocks, where files hold what it adds divided."""

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        every = builder.reader.size("halved_every", lowest=0)
        is_due = every > 0 and (block + 1) % every == 0
        return builder.scaled("hidden", 0.5) if is_due else []


DRIFTING_BLOCK: Block = (
    Normed("attention_norm"),
    DriftingMix(),
    Added("attended"),
    Normed("mlp_norm"),
    ChannelMix(form="lerp"),
    Added("mlp"),
    Halved(),
)
"""Both halves of RWKV-6, each behind a norm."""
