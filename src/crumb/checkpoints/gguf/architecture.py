"""An architecture of llama.cpp as data: which family it holds, its keys, names, orders of rows.

In: a family. Out: the record, of which gguf/architecture_rows.py has the rows, and every tensor
under both names. Refuses nothing. Facts: the loaders and converters of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import LIMIT
from crumb.architectures.family import Family
from crumb.architectures.reader import Reader
from crumb.checkpoints.gguf.header import Value

Order = NDArray[np.intp]
"""The row of ours that lies at each row of a GGUF tensor."""

PiecesOfOne = tuple[tuple[str, Order | None], ...]
Pieces = Mapping[str, PiecesOfOne]
"""Role -> tensors that its own is taken apart into, with {block}, and our rows that each has.

None: all of them.
"""


EXPERTS = {
    "experts": "expert_count",
    "used": "expert_used_count",
    "expert_inner": "expert_feed_forward_length",
}
GRANITE = {
    "embedding_scale": "embedding_scale",
    "attention_scale": "attention.scale",
    "residual_scale": "residual_scale",
    "logit_divisor": "logit_scale",
}
ALL_EXPERTS = dict.fromkeys(("gate", "up", "down"), LIMIT)
POST_NORM = {"mlp_norm": "blk.{block}.post_attention_norm"}
"""What several rows have in common: numbers, counts, depths, names."""


def interleaved(rows: int, heads: int, rotated: int | None = None) -> Order:
    """Pairs of features side by side: ours are half a head apart, or half of what rotates of it."""
    apart = np.arange(rows).reshape(heads, -1)
    count = apart.shape[1] if rotated is None else rotated
    turning = apart[:, :count].reshape(heads, 2, -1).swapaxes(1, 2).reshape(heads, -1)
    return np.concatenate([turning, apart[:, count:]], axis=1).reshape(-1)


TURNED: Mapping[str, Callable[[int, Reader], Order]] = {
    "query": lambda rows, reader: interleaved(rows, reader.sizes.heads),
    "key": lambda rows, reader: interleaved(rows, reader.sizes.key_value_heads),
}
"""Orders of queries and keys, where pairs lie side by side."""


@dataclass(frozen=True)
class Architecture:
    """One value of general.architecture."""

    name: str
    family: str  # the model_type that a file of it is read as
    epsilon: str = "attention.layer_norm_rms_epsilon"
    activations: tuple[str, ...] = ("silu",)  # those it computes; the first is what a file means
    orders: Mapping[str, Callable[[int, Reader], Order]] = field(default_factory=dict)
    """Role -> the order of so many rows, where it is not ours."""
    pieces: Callable[[Reader], Pieces] = lambda reader: {}
    older: Mapping[str, str] = field(default_factory=dict)
    """Role -> the name of the whole in files of older programs, of what has pieces today."""
    windowed: str | None = None  # the model_type of a file with a sliding window
    mixture: str | None = None  # the model_type of a file with experts
    whole_heads: bool = True  # heads * head_dim must be the hidden size
    grouped: bool = True  # key-value heads may be fewer
    numbers: Mapping[str, str] = field(default_factory=dict)  # our word -> its key
    counts: Mapping[str, str] = field(default_factory=dict)  # the same of whole numbers
    needed: Mapping[str, str] = field(default_factory=dict)  # of counts that a file must have
    settings: Mapping[str, str] = field(default_factory=dict)  # key of config.json -> its key
    fixed: Mapping[str, Value] = field(default_factory=dict)  # keys that say what the code does
    decided: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda words: {}
    """Words -> keys of config.json that the code of the architecture decides."""
    seen: Callable[[Collection[str]], Mapping[str, Any]] = lambda tensors: {}
    """Names of a file's tensors -> keys of config.json that they decide."""
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda words: {}
    """Words -> words that the code of the architecture fixes."""
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda words: {}
    """Words -> words that follow from them, once all are read."""
    stated: Callable[[Reader], Mapping[str, Value]] = lambda reader: {}
    """Keys that follow from several words, or are not as the words say."""
    limits: Callable[[Reader], Mapping[str, tuple[object, object]]] = lambda reader: {}
    """What its code takes for granted: a name -> what is expected, and what a model has."""
    windows: bool = False  # in the blocks that the family's own rule says
    tied: bool = False  # always: it has no head of its own
    from_blocks: Mapping[str, int] = field(default_factory=dict)  # role -> least depth that has it
    flags: tuple[str, ...] = ()  # keys of both; true where absent
    biases: tuple[str, ...] = ()  # roles that must have one
    may_be_biased: tuple[str, ...] | None = None  # roles that may have one; None: all
    names: Mapping[str, str] = field(default_factory=dict)  # role -> where not as in TENSORS
    rotates: bool = True
    own_head: bool = False  # always: the embedding is no head
    bias_names: Mapping[str, str] = field(default_factory=dict)  # role -> tensor that is its bias
    together: tuple[str, ...] = ()  # roles that one tensor holds, in this order
    slabs: Mapping[str, int] = field(default_factory=dict)  # role -> tensors of ours that one holds
    flat: tuple[str, ...] = ()  # roles whose tensors are one row there
    repeated: Mapping[str, str] = field(
        default_factory=dict
    )  # tensors that nothing reads -> copies
    latent: bool = False  # keys and values of all heads come from one vector
    attends: bool = True  # else its heads are not those of attention
    hybrid: bool = False  # key-value heads are said for each block: one with none does not attend

    def key(self, short: str) -> str:
        return f"{self.name}.{short}"

    def takes_bias(self, role: str) -> bool:
        """Whether a tensor of this role may have a bias."""
        return self.may_be_biased is None or role in self.may_be_biased

    def row_order(self, role: str, rows: int, reader: Reader) -> Order | None:
        """How the rows of a tensor lie in the file; None as ours do."""
        return self.orders[role](rows, reader) if role in self.orders else None

    def tensor(self, role: str) -> str:
        """The name of a role's tensors, with {block} and without .weight."""
        return self.names.get(role) or self.older.get(role) or TENSORS[role]

    def tensor_of(self, role: str, kind: str, block: int) -> str:
        """The whole name of a role's weight or bias."""
        if kind == "bias" and role in self.bias_names:
            return f"{self.bias_names[role].format(block=block)}.weight"
        return f"{self.tensor(role).format(block=block)}.{kind}"

    @property
    def model_types(self) -> tuple[str, ...]:
        """Families whose models its files may hold."""
        return tuple(filter(None, (self.family, self.windowed, self.mixture)))


TENSORS: dict[str, str] = {
    "embedding": "token_embd",
    "attention_norm": "blk.{block}.attn_norm",
    "query": "blk.{block}.attn_q",
    "key": "blk.{block}.attn_k",
    "value": "blk.{block}.attn_v",
    "qkv": "blk.{block}.attn_qkv",
    "output": "blk.{block}.attn_output",
    "mlp_norm": "blk.{block}.ffn_norm",
    "gate": "blk.{block}.ffn_gate",
    "up": "blk.{block}.ffn_up",
    "down": "blk.{block}.ffn_down",
    "final_norm": "output_norm",
    "head": "output",
    "query_norm": "blk.{block}.attn_q_norm",
    "key_norm": "blk.{block}.attn_k_norm",
    "attention_post_norm": "blk.{block}.post_attention_norm",
    "mlp_post_norm": "blk.{block}.post_ffw_norm",
    "gate_up": "blk.{block}.ffn_up",
    "embedding_norm": "token_embd_norm",
    "positions": "position_embd",
    "sinks": "blk.{block}.attn_sinks",
    "router": "blk.{block}.ffn_gate_inp",
    "router_choice": "blk.{block}.exp_probs_b",
    "expert_gate": "blk.{block}.ffn_gate_exps",
    "expert_up": "blk.{block}.ffn_up_exps",
    "expert_down": "blk.{block}.ffn_down_exps",
    "shared_router": "blk.{block}.ffn_gate_inp_shexp",
    "shared_gate": "blk.{block}.ffn_gate_shexp",
    "shared_up": "blk.{block}.ffn_up_shexp",
    "shared_down": "blk.{block}.ffn_down_shexp",
    "query_down": "blk.{block}.attn_q_a",
    "query_up": "blk.{block}.attn_q_b",
    "latent_down": "blk.{block}.attn_kv_a_mqa",
    "latent_norm": "blk.{block}.attn_kv_a_norm",
    "latent_up": "blk.{block}.attn_kv_b",
    "latent_key": "blk.{block}.attn_k_b",
    "latent_value": "blk.{block}.attn_v_b",
    "mixer_norm": "blk.{block}.attn_norm",
    "scan_in": "blk.{block}.ssm_in",
    "scan_taps": "blk.{block}.ssm_conv1d",
    "scan_rate": "blk.{block}.ssm_a",
    "scan_bias": "blk.{block}.ssm_dt",
    "scan_skip": "blk.{block}.ssm_d",
    "scan_norm": "blk.{block}.ssm_norm",
    "scan_output": "blk.{block}.ssm_out",
    "delta_paces": "blk.{block}.ssm_ba",
    "delta_taps": "blk.{block}.ssm_conv1d",
    "delta_rate": "blk.{block}.ssm_a",
    "delta_bias": "blk.{block}.ssm_dt",
    "delta_norm": "blk.{block}.ssm_norm",
    "delta_output": "blk.{block}.ssm_out",
    "gates": "blk.{block}.shortconv.in_proj",
    "convolution": "blk.{block}.shortconv.conv",
    "mixer_output": "blk.{block}.shortconv.out_proj",
}
"""Role -> tensor name, without .weight; one tensor holds all experts of a block, or all heads' keys
or values of a latent. Older files have "latent_up" in place of those two."""

BARE = {"router_choice": "bias", "sinks": "weight", "scan_bias": "bias", "delta_bias": "bias"}
BARE |= dict.fromkeys(("direction", "renewal", "bonus", "decay"), "weight")
BARE |= dict.fromkeys(("mix_down", "decay_down", "decay_up"), "weight")
BARE |= {
    f"{role}_mix": "weight"
    for role in ("receptance", "pace", "key", "value", "share", "pass", "mix", "up", "gate")
}
BARE |= dict.fromkeys(("scan_rate", "scan_skip", "delta_rate"), "")
"""Roles whose names are whole with us -> what they end in there, "" for nothing."""


@dataclass(frozen=True)
class Named:
    """One tensor under both names."""

    role: str
    ours: str
    theirs: str
    part: int | None = None  # which of those that their tensor holds, all of one shape
    parts: int = 1
    rows: Order | None = None  # of ours that it holds, where it does not hold all
    older: bool = False  # what only other programs write

    @property
    def kind(self) -> str:
        """What its name ends in: weight, bias, or what it is."""
        return self.ours.rpartition(".")[2]


def names_of(
    row: Architecture,
    family: Family,
    blocks: int,
    experts: int = 0,
    heads: int = 0,
    pieces: Pieces | None = None,
) -> Iterator[Named]:
    """Every tensor that a model of a family can have, under both names."""
    roles = dict(family.tensors)
    if family.encoder is not None:
        others = {role: name for role, name in family.encoder.tensors.items() if "{" in name}
        roles |= {f"encoder.{role}": name for role, name in others.items()}
        roles["encoder.final_norm"] = family.encoder.tensors["final_norm"]
    for role, name in roles.items():
        for block in range(blocks if "{block}" in name else 1):
            if pieces and role in pieces:
                yield from _in_pieces(row, role, name.format(block=block), block, pieces[role])
                continue
            ours, theirs = (each.format(block=block) for each in (name, row.tensor(role)))
            if role in BARE:
                both = ours, f"{theirs}.{BARE[role]}".rstrip(".")
                if role in row.together:
                    place = row.together.index(role), len(row.together)
                    yield Named(role, *both, *place)
                else:
                    yield Named(role, *both)
                continue
            if role == "latent_up":
                yield from _of_heads(row, ours, block, heads)
            for kind in ("weight", "bias"):
                both = f"{ours}.{kind}", row.tensor_of(role, kind, block)
                if "{expert}" not in ours:
                    yield Named(role, *both)
                    continue
                count = row.slabs.get(role, experts)
                for expert in range(count):
                    yield Named(role, both[0].format(expert=expert), both[1], expert, count)


def _in_pieces(
    row: Architecture,
    role: str,
    ours: str,
    block: int,
    pieces: PiecesOfOne,
) -> Iterator[Named]:
    """The weights of a role that lies in several tensors, or in one of another name."""
    for theirs, rows in pieces:
        yield Named(role, f"{ours}.weight", f"{theirs.format(block=block)}.weight", rows=rows)
    if role in row.older:
        theirs = row.older[role].format(block=block)
        yield Named(role, f"{ours}.weight", f"{theirs}.weight", older=True)


def _of_heads(row: Architecture, ours: str, block: int, heads: int) -> Iterator[Named]:
    """The matrices of each head, as architectures/latent.py names them."""
    for kind in ("key", "value"):
        theirs = row.tensor(f"latent_{kind}").format(block=block)
        for head in range(heads):
            yield Named(
                f"latent_{kind}", f"{ours}.{head}.{kind}.weight", f"{theirs}.weight", head, heads
            )


def names_of_model(row: Architecture, reader: Reader) -> Iterator[Named]:
    """Every tensor that a model of a configuration can have, under both names."""
    experts, heads = experts_of(reader), reader.sizes.heads
    return names_of(row, reader.family, depth_of(reader), experts, heads, row.pieces(reader))


def depth_of(reader: Reader) -> int:
    """Blocks of the deeper half, or of all."""
    return max(reader.sizes.blocks, reader.size("decoder_blocks", reader.sizes.blocks))


def experts_of(reader: Reader) -> int:
    """Experts of a block; 0 where the family has none."""
    return reader.size("experts", lowest=0) if "experts" in reader.family.keys else 0
