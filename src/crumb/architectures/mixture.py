"""Mixtures of experts as rows of a block: the router, its choice, the experts, a shared one.

In: a family's words "experts", "used" and "expert_inner", its roles "router" and "expert_gate",
"expert_up" and "expert_down", whose names have {expert}. Out: rows for architectures/block.py.
Refuses more experts for a token than there are, and groups that do not divide them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from crumb.architectures.block import (
    Added,
    Block,
    BlockRow,
    FeedForward,
    Normed,
    SelfAttention,
    Sum,
)
from crumb.architectures.configuration import MISSING, as_integer, refuse
from crumb.operations.experts import Experts
from crumb.operations.linear import Linear
from crumb.operations.operation import Operation
from crumb.operations.router import Router

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder
    from crumb.architectures.reader import Reader

MOST_EXPERTS = 1 << 17
"""Of all blocks together: a claimed number costs memory before any file is read."""


@dataclass(frozen=True)
class Routing:
    """How scores become a choice and shares: fields of operations/router.py."""

    scoring: str = "softmax"
    finish: str = "none"
    biased: bool = False  # the tensor "router_choice" is added for the choice alone
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    floor: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """Each token goes through the experts that its router chooses.

    Roles begin with `prefix`: gate, up and down of the experts, which have biases if "down" has.
    """

    experts: int
    used: int
    inner: int
    function: str
    routing: Routing
    slope: float = 1.0  # of operations/experts.py, as is limit
    limit: float = 0.0
    shares_first: bool = False  # of operations/experts.py
    router: str = "router"
    prefix: str = "expert_"
    input: str = "normed"
    output: str = "mlp"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        routing, hidden, names = self.routing, builder.sizes.hidden, builder.family.tensors
        choice = names["router_choice"].format(block=block) if routing.biased else None
        weight, bias = builder.name(self.router, block), builder.bias(self.router, block)
        scores, shares, chosen = (
            f"{self.router}_{each}" for each in ("scores", "shares", "chosen")
        )
        gate, up, down = (f"{self.prefix}{role}" for role in ("gate", "up", "down"))
        return [
            Linear(self.input, scores, weight, bias, hidden, self.experts, exact=True),
            Router(
                scores,
                shares,
                chosen,
                self.experts,
                self.used,
                routing.scoring,
                routing.finish,
                choice,
                routing.groups,
                routing.top_groups,
                routing.group_best,
                routing.floor,
                routing.factor,
            ),
            Experts(
                self.input,
                shares,
                chosen,
                self.output,
                builder.name(gate, block),
                builder.name(up, block),
                builder.name(down, block),
                self.experts,
                self.used,
                hidden,
                self.inner,
                self.function,
                builder.bias(gate, block),
                builder.bias(up, block),
                builder.bias(down, block),
                self.slope,
                self.limit,
                self.shares_first,
            ),
        ]


def mixture(
    reader: Reader,
    routing: Routing,
    function: str | None = None,
    slope: float = 1.0,
    limit: float = 0.0,
) -> Mixture:
    """The experts of a configuration. Raises: CheckpointError."""
    experts, used = reader.size("experts"), reader.size("used")
    blocks, groups, best = reader.sizes.blocks, routing.groups, routing.top_groups
    if experts * blocks > MOST_EXPERTS:
        key = reader.find("experts")[0]
        raise refuse(key, f"at most {MOST_EXPERTS} experts in {blocks} blocks", experts)
    if experts % groups or best > groups or routing.group_best > experts // groups:
        expected = f"groups that divide {experts} experts, and no more chosen than there are"
        raise refuse(reader.find("groups")[0], expected, f"{groups}, of which {best}")
    if used > best * (experts // groups):
        key = reader.find("used")[0]
        raise refuse(key, f"at most the {best * (experts // groups)} experts to choose from", used)
    inner, function = reader.size("expert_inner"), function or reader.activation()
    return Mixture(experts, used, inner, function, routing, slope, limit)


def gated_expert(reader: Reader, inner: int, output: str = "shared") -> Mixture:
    """An expert that every token uses, weighed by the sigmoid of the score of its own router."""
    routing = Routing("none", "sigmoid")
    mixture = Mixture(1, 1, inner, reader.activation(), routing, output=output)
    return replace(mixture, router="shared_router", prefix="shared_")


def sequential(*mlp: BlockRow, attention: BlockRow | None = None) -> Block:
    """A block whose MLP is some rows that write "mlp"."""
    first = (Normed("attention_norm"), attention or SelfAttention(), Added("attended"))
    return (*first, Normed("mlp_norm"), *mlp, Added("mlp"))


def with_gated_expert(reader: Reader, block: int, attention: BlockRow | None = None) -> Block:
    """A block whose experts have one beside them that every token uses, weighed; or one MLP."""
    if not is_sparse(reader, block):
        return sequential(FeedForward(), attention=attention)
    routing = Routing("softmax", "sum" if reader.flag("norm_topk_prob") else "none")
    shared = gated_expert(reader, reader.size("shared_inner"))
    added = Sum("mlp", "shared", "mlp")
    return sequential(mixture(reader, routing), shared, added, attention=attention)


def sigmoid_routing(reader: Reader) -> Routing:
    """DeepSeek's: groups as good as their two best, a bias for the choice alone."""
    return Routing(
        "sigmoid",
        "sum" if reader.flag("norm_topk_prob") else "none",
        biased=True,
        groups=reader.size("groups"),
        top_groups=reader.size("top_groups"),
        group_best=2,
        floor=1e-20,
        factor=reader.number("factor"),
    )


def with_shared(
    reader: Reader,
    block: int,
    routing: Routing,
    attention: BlockRow | None = None,
    dense: bool | None = None,
) -> Block:
    """A block whose experts have one beside them that every token uses, or one without any.

    `dense` says which; None: the first blocks are, as many as the word "dense_first" says.
    """
    if dense is None:
        dense = block < reader.size("dense_first", lowest=0)
    if dense:
        return sequential(FeedForward(), attention=attention)
    inner = reader.size("expert_inner") * reader.size("shared")
    shared = FeedForward(output="shared", prefix="shared_", inner=inner)
    added = Sum("mlp", "shared", "mlp")
    return sequential(mixture(reader, routing), shared, added, attention=attention)


def is_sparse(reader: Reader, block: int) -> bool:
    """Whether a block has experts, in families where some have and some have not.

    Where the word "sparse_blocks" names them, no rule counts. Raises: CheckpointError.
    """
    named = block_list(reader, "sparse_blocks")
    if named is not None:
        return block in named
    dense = block_list(reader, "dense_blocks") or []
    return (block + 1) % reader.size("sparse_step") == 0 and block not in dense


def block_list(reader: Reader, word: str) -> list[int] | None:
    """The blocks that a word names; None where it says nothing."""
    key, listed = reader.find(word)
    if listed is None or listed is MISSING:
        return None
    if not isinstance(listed, list | tuple):
        raise refuse(key, "a list of blocks", listed)
    return [as_integer(each, key, lowest=0) for each in listed]


LOCAL_KEYS: Mapping[str, str | tuple[str, ...]] = {
    "experts": ("num_local_experts", "num_experts"),
    "used": "num_experts_per_tok",
    "expert_inner": "intermediate_size",
}
"""Of mixtures in which every MLP is experts."""

QWEN_KEYS: Mapping[str, str | tuple[str, ...]] = {
    "experts": ("num_experts", "num_local_experts"),
    "used": "num_experts_per_tok",
    "expert_inner": "moe_intermediate_size",
    "sparse_step": "decoder_sparse_step",
    "dense_blocks": "mlp_only_layers",
}
QWEN_DEFAULTS = {"sparse_step": 1, "dense_blocks": None, "norm_topk_prob": False}
QWEN_TENSORS = {
    "router": "model.layers.{block}.mlp.gate",
    **{
        f"expert_{role}": f"model.layers.{{block}}.mlp.experts.{{{{expert}}}}.{role}_proj"
        for role in ("gate", "up", "down")
    },
}
"""What most families call their experts."""

SHARED_KEYS: Mapping[str, str | tuple[str, ...]] = {
    "experts": ("n_routed_experts", "num_local_experts", "num_experts"),
    "used": "num_experts_per_tok",
    "expert_inner": "moe_intermediate_size",
    "shared": "n_shared_experts",
    "dense_first": "first_k_dense_replace",
    "groups": "n_group",
    "top_groups": "topk_group",
    "factor": "routed_scaling_factor",
}
SHARED_TENSORS = {
    **QWEN_TENSORS,
    "router_choice": "model.layers.{block}.mlp.gate.e_score_correction_bias",
    **{
        f"shared_{role}": f"model.layers.{{block}}.mlp.shared_experts.{role}_proj"
        for role in ("gate", "up", "down")
    },
}
"""What DeepSeek and GLM call them."""
