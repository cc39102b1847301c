"""Architectures of llama.cpp as data: which families they hold, tensor names, orders of rows.

In: a file's metadata, or a family. Out: a row of ARCHITECTURES, or every tensor under both names.
Refuses architectures without a row. Facts: the loaders and converters of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import LIMIT, shown
from crumb.architectures.family import Family
from crumb.architectures.reader import Sizes
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.errors import UnknownFamily

HEAD_NORMS = ("query_norm", "key_norm")

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
    numbers: Mapping[str, str] = field(default_factory=dict)  # our word -> its key
    settings: Mapping[str, str] = field(default_factory=dict)  # key of config.json -> its key
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda words: {}
    """Words -> words that the code of the architecture fixes."""
    windows: bool = False  # in the blocks that the family's own rule says
    tied: bool = False  # always: it has no head of its own
    from_blocks: Mapping[str, int] = field(default_factory=dict)  # role -> least depth that has it
    flags: tuple[str, ...] = ()  # keys of both; true where absent
    biases: tuple[str, ...] = ()  # roles that must have one
    rotates: bool = True

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
    "query_norm": "blk.{block}.attn_q_norm",
    "key_norm": "blk.{block}.attn_k_norm",
    "attention_post_norm": "blk.{block}.post_attention_norm",
    "mlp_post_norm": "blk.{block}.post_ffw_norm",
    "gate_up": "blk.{block}.ffn_up",
    "embedding_norm": "token_embd_norm",
    "positions": "position_embd",
}
"""Role -> tensor name, without .weight."""

_GELUS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_RMS, _LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"

_TURNED = {"query": (_interleave, "heads"), "key": (_interleave, "key_value_heads")}
_APPROXIMATE = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_CAPS = {"score_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}


def _query_scale(blocks_of_largest: int) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Gemma's scale of scores is no key: the head's width, but in the largest model of each."""

    def scale(words: Mapping[str, Any]) -> Mapping[str, Any]:
        if words["blocks"] == blocks_of_largest:
            return {"query_scale": words["hidden"] // words["heads"]}
        return {"query_scale": words["head_dim"]}

    return scale


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(
            "llama",
            family="llama",
            epsilon=_RMS,
            activations=("silu",),
            orders=_TURNED,
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
        Architecture(
            "qwen3",
            family="qwen3",
            epsilon=_RMS,
            activations=("silu",),
            orders={},
            whole_heads=False,
        ),
        Architecture(
            "gemma",
            family="gemma",
            epsilon=_RMS,
            activations=_APPROXIMATE,
            orders={},
            whole_heads=False,
            tied=True,
        ),
        Architecture(
            "gemma2",
            family="gemma2",
            epsilon=_RMS,
            activations=_APPROXIMATE,
            orders={},
            whole_heads=False,
            numbers=_CAPS,
            implied=_query_scale(46),
            windows=True,
            tied=True,
        ),
        Architecture(
            "gemma3",
            family="gemma3_text",
            epsilon=_RMS,
            activations=_APPROXIMATE,
            orders={},
            whole_heads=False,
            numbers={"logit_cap": "final_logit_softcapping"},
            settings={
                "rope_local_base_freq": "rope.freq_base_swa",
                "sliding_window_pattern": "attention.sliding_window_pattern",
            },
            implied=_query_scale(62),
            windows=True,
        ),
        Architecture(
            "smollm3",
            family="smollm3",
            epsilon=_RMS,
            activations=("silu",),
            orders=_TURNED,
        ),
        Architecture("olmo2", family="olmo2", epsilon=_RMS, activations=("silu",), orders={}),
        Architecture(
            "granite",
            family="granite",
            epsilon=_RMS,
            activations=("silu",),
            orders=_TURNED,
            numbers={
                "embedding_scale": "embedding_scale",
                "attention_scale": "attention.scale",
                "residual_scale": "residual_scale",
                "logit_divisor": "logit_scale",
            },
        ),
        Architecture(
            "command-r",
            family="cohere",
            epsilon=_LAYER,
            activations=("silu",),
            orders={},
            numbers={"logit_scale": "logit_scale"},
            tied=True,
            from_blocks=dict.fromkeys(HEAD_NORMS, 64),
        ),
        Architecture(
            "cohere2",
            family="cohere2",
            epsilon=_LAYER,
            activations=("silu",),
            orders={},
            numbers={"logit_scale": "logit_scale"},
            windows=True,
            tied=True,
        ),
        Architecture(
            "stablelm",
            family="stablelm",
            epsilon=_LAYER,
            activations=("silu",),
            orders={},
            flags=("use_parallel_residual",),
        ),
        Architecture(
            "glm4", family="glm4", epsilon=_RMS, activations=("silu",), orders={}, whole_heads=False
        ),
        Architecture(
            "starcoder2",
            family="starcoder2",
            epsilon=_LAYER,
            activations=_APPROXIMATE,
            orders={},
            biases=("query", "key", "value", "output", "up", "down"),
        ),
        Architecture(
            "gpt2",
            family="gpt2",
            epsilon=_LAYER,
            activations=_APPROXIMATE[1:] + _APPROXIMATE[:1],
            orders={},
            rotates=False,
        ),
        Architecture(
            "phi2",
            family="phi",
            epsilon=_LAYER,
            activations=_APPROXIMATE[1:],
            orders={},
            from_blocks=dict.fromkeys(HEAD_NORMS, LIMIT),
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


def weight_offset(family: Family, name: Named) -> float:
    """What a file has added to each number of a tensor: norms of weights around 0 become others."""
    if not name.ours.endswith(".weight") or not name.role.endswith("_norm"):
        return 0.0
    form = family.head_norm if name.role in HEAD_NORMS else family.norm
    return form.offset


def names_of(family: Family, blocks: int) -> Iterator[Named]:
    """Every tensor that a model of a family can have, under both names."""
    for role, name in family.tensors.items():
        for block in range(blocks if "{block}" in name else 1):
            for kind in ("weight", "bias"):
                ours = f"{name.format(block=block)}.{kind}"
                yield Named(role, ours, f"{TENSORS[role].format(block=block)}.{kind}")
