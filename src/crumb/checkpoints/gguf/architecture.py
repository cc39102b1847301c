"""Architectures of llama.cpp as data: which families they hold, tensor names, orders of rows.

In: a file's metadata, or a family. Out: a row of ARCHITECTURES, or every tensor under both names.
Refuses architectures without a row. Facts: the loaders and converters of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import shown
from crumb.architectures.family import Family
from crumb.architectures.reader import Sizes
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.errors import UnknownFamily

Order = NDArray[np.intp]
"""The row of ours that lies at each row of a GGUF tensor."""


def _interleave(rows: int, heads: int) -> Order:
    """Pairs of features side by side: ours are half a head apart."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _part_by_part(rows: int, heads: int) -> Order:
    """All heads' queries, then all keys, then all values: ours go head by head."""
    return np.arange(rows).reshape(heads, 3, -1).swapaxes(0, 1).reshape(-1)


@dataclass(frozen=True)
class Architecture:
    """One value of general.architecture."""

    name: str
    family: str  # the model_type that a file of it is read as
    epsilon: str
    activations: tuple[str, ...]  # those it computes; the first is what a file means
    orders: Mapping[str, tuple[Callable[[int, int], Order], str]]  # role -> order, its head count
    windowed: str | None = None  # the model_type of a file with a sliding window
    whole_heads: bool = True  # heads * head_dim must be the hidden size
    flags: tuple[str, ...] = ()  # keys of both; true where absent
    biases: tuple[str, ...] = ()  # roles that must have one

    def key(self, short: str) -> str:
        return f"{self.name}.{short}"

    def row_order(self, role: str, rows: int, sizes: Sizes) -> Order | None:
        """How the rows of a tensor lie in the file; None as ours do."""
        if role not in self.orders:
            return None
        order, heads = self.orders[role]
        return order(rows, getattr(sizes, heads))


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
}
"""Role -> tensor name, without .weight."""

_GELUS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_RMS, _LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"

ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(
            "llama",
            family="llama",
            epsilon=_RMS,
            activations=("silu",),
            orders={"query": (_interleave, "heads"), "key": (_interleave, "key_value_heads")},
            windowed="mistral",
            whole_heads=False,
        ),
        Architecture("qwen2", family="qwen2", epsilon=_RMS, activations=("silu",), orders={}),
        Architecture(
            "gptneox",
            family="gpt_neox",
            epsilon=_LAYER,
            activations=_GELUS,
            orders={"qkv": (_part_by_part, "heads")},
            flags=("use_parallel_residual",),
            biases=("qkv",),
        ),
    )
}

ARCHITECTURE_OF_FAMILY = {
    model_type: row
    for row in ARCHITECTURES.values()
    for model_type in (row.family, row.windowed)
    if model_type is not None
}


def architecture_of(metadata: Metadata) -> Architecture:
    """The row of a file. Raises: UnknownFamily, CheckpointError."""
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnknownFamily(
            "this architecture of GGUF is not read",
            where=f"{metadata.path}: general.architecture",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            found=shown(name),
        )
    return ARCHITECTURES[name]


@dataclass(frozen=True)
class Named:
    """One tensor under both names."""

    role: str
    ours: str
    theirs: str


def names_of(family: Family, blocks: int) -> Iterator[Named]:
    """Every tensor that a model of a family can have, under both names."""
    for role, name in family.tensors.items():
        for block in range(blocks if "{block}" in name else 1):
            for kind in ("weight", "bias"):
                ours = f"{name.format(block=block)}.{kind}"
                yield Named(role, ours, f"{TENSORS[role].format(block=block)}.{kind}")
