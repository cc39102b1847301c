"""Models with a state, as llama.cpp has them: mamba2, granitehybrid, lfm2, lfm2moe, qwen3next.

In: nothing. Out: their rows. Key-value heads are said for each block, 0 where it keeps a state.
What Crumb's families hold in one matrix lies in two tensors: gate and up of Granite's MLP, and of
Qwen's delta rule the gate apart from what is convolved. Bamba is a granitehybrid that rotates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crumb.architectures.delta_net import delta_sizes
from crumb.architectures.reader import Reader
from crumb.architectures.scan import scan_sizes
from crumb.checkpoints.gguf.architecture import (
    ALL_EXPERTS,
    EXPERTS,
    GRANITE,
    POST_NORM,
    TURNED,
    Architecture,
    Order,
    Pieces,
    interleaved,
)
from crumb.checkpoints.gguf.header import Value

INNER = "ssm.inner_size"

SCAN = {
    "taps": "ssm.conv_kernel",
    "scan_state": "ssm.state_size",
    "scan_groups": "ssm.group_count",
    "scan_heads": "ssm.time_step_rank",
    "scan_inner": INNER,
}


def _quotient(whole: int, parts: int) -> float:
    """A whole number, or a fraction that readers of configurations refuse."""
    return whole / parts if whole % parts else whole // parts


def _scan_words(words: Mapping[str, Any]) -> dict[str, Any]:
    inner, heads = words["scan_inner"], words["scan_heads"]
    return {"scan_dim": _quotient(inner, heads), "expand": _quotient(inner, words["hidden"])}


def _scan_keys(reader: Reader) -> dict[str, Value]:
    heads, dim, _, _ = scan_sizes(reader)
    return {INNER: heads * dim}


def _mamba_keys(reader: Reader) -> dict[str, Value]:
    return {**_scan_keys(reader), "feed_forward_length": 0}


def kinds_of(words: Mapping[str, Any], other: str) -> list[str]:
    """The kind of each block: full_attention, or another."""
    return ["full_attention" if attends else other for attends in words["attends"]]


def _granite_words(words: Mapping[str, Any]) -> dict[str, Any]:
    """Of a mixture the MLP's width is that of an expert, and the shared one has its own."""
    scan, wide = _scan_words(words), words["feed_forward"]
    if not words.get("experts"):
        return scan | {"experts": 0}
    return scan | {"expert_inner": wide, "feed_forward": words.get("shared_inner", wide)}


def _granite_keys(reader: Reader) -> dict[str, Value]:
    wide, experts = "expert_shared_feed_forward_length", reader.size("experts", lowest=0)
    keys = _scan_keys(reader)
    if not experts:
        return {**keys, "expert_count": 0, "expert_used_count": 0}
    inner = reader.size("expert_inner")
    return {**keys, "feed_forward_length": inner, wide: reader.sizes.feed_forward}


def _gate_and_up(reader: Reader) -> Pieces:
    end = "_shexp" if reader.size("experts", lowest=0) else ""
    wide = reader.sizes.feed_forward
    gate, up, down = (f"blk.{{block}}.ffn_{role}{end}" for role in ("gate", "up", "down"))
    return {
        "gate_up": ((gate, np.arange(wide)), (up, np.arange(wide, 2 * wide))),
        "down": ((down, None),),
    }


def _turned_in_part(role: str) -> Any:
    """Of heads that rotate in part: that part alone has pairs side by side."""

    def order(rows: int, reader: Reader) -> Order:
        heads = reader.sizes.heads if role == "query" else reader.sizes.key_value_heads
        return interleaved(rows, heads, reader.rope().dimensions)

    return order


def _expands(reader: Reader) -> dict[str, tuple[object, object]]:
    return {"mamba_expand": (2, reader.size("expand"))}


def _delta_words(words: Mapping[str, Any]) -> dict[str, Any]:
    return {"delta_value_dim": _quotient(words["delta_inner"], words["value_heads"])}


def _delta_keys(reader: Reader) -> dict[str, Value]:
    return {INNER: delta_sizes(reader).widths[2]}


def _delta_limits(reader: Reader) -> dict[str, tuple[object, object]]:
    sizes = delta_sizes(reader)
    return {"linear_value_head_dim": (sizes.key_dim, sizes.value_dim)}


def _delta_pieces(reader: Reader) -> Pieces:
    """Ours goes by key head: its query, its key, its values, their gates."""
    sizes = delta_sizes(reader)
    key, values = sizes.key_dim, sizes.heads // sizes.key_heads * sizes.value_dim
    wide = 2 * key + 2 * values
    apart = np.split(
        np.arange(sizes.key_heads * wide).reshape(sizes.key_heads, wide),
        (key, 2 * key, 2 * key + values),
        axis=1,
    )
    query, keys, value, gate = (part.reshape(-1) for part in apart)
    joined = np.concatenate([query, keys, value])
    return {"delta_in": (("blk.{block}.attn_qkv", joined), ("blk.{block}.attn_gate", gate))}


_GRANITE_HYBRID = Architecture(
    "granitehybrid",
    family="granitemoehybrid",
    hybrid=True,
    rotates=False,
    whole_heads=False,
    orders=TURNED,
    numbers=GRANITE,
    counts={key: EXPERTS[key] for key in ("experts", "used")}
    | {"shared_inner": "expert_shared_feed_forward_length"},
    needed=SCAN,
    derived=_granite_words,
    stated=_granite_keys,
    limits=_expands,
    pieces=_gate_and_up,
    fixed={"rope.scaling.finetuned": False},
    decided=lambda words: {"layer_types": kinds_of(words, "linear_attention")},
    may_be_biased=("query", "key", "value", "output", "scan_taps"),
)
_LFM2 = Architecture(
    "lfm2",
    family="lfm2",
    hybrid=True,
    needed={"taps": "shortconv.l_cache"},
    decided=lambda words: {
        "layer_types": kinds_of(words, "conv"),
        "block_auto_adjust_ff_dim": False,
    },
    names={"final_norm": "token_embd_norm"},
    may_be_biased=(),
)

HYBRIDS: tuple[Architecture, ...] = (
    Architecture(
        "mamba2",
        family="mamba2",
        attends=False,
        rotates=False,
        needed=SCAN,
        derived=_scan_words,
        stated=_mamba_keys,
        biases=("scan_taps",),
        may_be_biased=("scan_taps",),
    ),
    replace(
        _GRANITE_HYBRID,
        family="bamba",
        rotates=True,
        orders={role: _turned_in_part(role) for role in ("query", "key")},
        numbers={},
        counts={},
        derived=_scan_words,
        stated=_scan_keys,
        pieces=lambda reader: {},
        fixed={"rope.scaling.finetuned": True},
        decided=lambda words: {
            "attn_layer_indices": [block for block, each in enumerate(words["attends"]) if each]
        },
        may_be_biased=("query", "key", "value", "output", "gate", "up", "down", "scan_taps"),
    ),
    _GRANITE_HYBRID,
    _LFM2,
    replace(
        _LFM2,
        name="lfm2moe",
        family="lfm2_moe",
        limits=lambda reader: {"routed_scaling_factor": (1.0, reader.number("factor"))},
        counts=EXPERTS | {"dense_first": "leading_dense_block_count"},
        fixed={"expert_gating_func": 2},
        decided=lambda words: {
            "layer_types": kinds_of(words, "conv"),
            "norm_topk_prob": True,
            "use_expert_bias": True,
        },
    ),
    Architecture(
        "qwen3next",
        family="qwen3_next",
        whole_heads=False,
        counts=EXPERTS
        | {"shared_inner": "expert_shared_feed_forward_length"}
        | {"attends_every": "full_attention_interval"},
        needed={
            "taps": "ssm.conv_kernel",
            "delta_key_dim": "ssm.state_size",
            "key_heads": "ssm.group_count",
            "value_heads": "ssm.time_step_rank",
            "delta_inner": INNER,
        },
        derived=_delta_words,
        stated=_delta_keys,
        limits=_delta_limits,
        pieces=_delta_pieces,
        older={"delta_in": "blk.{block}.ssm_in"},
        decided=lambda words: {"norm_topk_prob": True},
        from_blocks=ALL_EXPERTS,
        names=POST_NORM,
        may_be_biased=(),
    ),
)
