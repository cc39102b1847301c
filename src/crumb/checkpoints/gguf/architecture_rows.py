"""The architectures of llama.cpp that are read and written: a row for each.

In: a file's metadata, or a family. Out: a row of ROWS.
Refuses architectures without a row. Facts: the loaders and converters of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crumb.architectures.configuration import LIMIT, shown
from crumb.architectures.reader import Reader
from crumb.checkpoints.gguf.architecture import (
    ALL_EXPERTS,
    EXPERTS,
    GRANITE,
    POST_NORM,
    TURNED,
    Architecture,
    Order,
)
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.hybrids import HYBRIDS
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.gguf.number_forms import HEAD_NORMS
from crumb.checkpoints.gguf.rwkv import RWKV6, RWKV7
from crumb.checkpoints.gguf.t5 import T5
from crumb.errors import UnknownFamily


def _part_by_part(rows: int, reader: Reader) -> Order:
    """All heads' queries, then all keys, then all values: ours go by key-value head."""
    sizes = reader.sizes
    group = sizes.heads // sizes.key_value_heads
    apart = np.arange(rows).reshape(sizes.key_value_heads, group + 2, -1)
    parts = apart[:, :group], apart[:, group], apart[:, group + 1]
    return np.concatenate([part.reshape(-1) for part in parts])


_GELUS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_LAYER = "attention.layer_norm_epsilon"

_APPROXIMATE = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_ORIGINAL = {"original_max_position_embeddings": "rope.scaling.original_context_length"}
_CAPS = {"score_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}


def _query_scale(blocks_of_largest: int) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Gemma's scale of scores is no key: the head's width, but in the largest model of each."""

    def scale(words: Mapping[str, Any]) -> Mapping[str, Any]:
        if words["blocks"] == blocks_of_largest:
            return {"query_scale": words["hidden"] // words["heads"]}
        return {"query_scale": words["head_dim"]}

    return scale


_DEEPSEEK = Architecture(
    "deepseek2",
    family="deepseek_v3",
    whole_heads=False,
    numbers={"factor": "expert_weights_scale"},
    counts=EXPERTS | {"shared": "expert_shared_count", "dense_first": "leading_dense_block_count"},
    decided=lambda words: {"num_key_value_heads": words["heads"], "norm_topk_prob": False},
    implied=lambda words: {"factor": 1.0, "groups": 1, "top_groups": 1},
    names={"query_norm": "blk.{block}.attn_q_a_norm"},
    may_be_biased=(),
    latent=True,
)

ROWS: tuple[Architecture, ...] = (
    Architecture(
        "llama",
        family="llama",
        mixture="mixtral",
        counts={"experts": "expert_count", "used": "expert_used_count"},
        orders=TURNED,
        windowed="mistral",
        whole_heads=False,
    ),
    Architecture(
        "llama4",
        family="llama4_text",
        whole_heads=False,
        counts=EXPERTS | {"sparse_step": "interleave_moe_layer_step"},
        fixed={"attention.sliding_window": 8192, "attention.sliding_window_pattern": 4},
        decided=lambda words: {"use_qk_norm": words["experts"] != 128},
        may_be_biased=(),
    ),
    Architecture("qwen2", family="qwen2"),
    Architecture(
        "gptneox",
        family="gpt_neox",
        epsilon=_LAYER,
        activations=_GELUS,
        orders={"qkv": _part_by_part},
        flags=("use_parallel_residual",),
        biases=("qkv",),
    ),
    Architecture(
        "mistral3",
        family="ministral3",
        orders=TURNED,
        whole_heads=False,
    ),
    Architecture(
        "qwen3",
        family="qwen3",
        whole_heads=False,
    ),
    Architecture(
        "gemma",
        family="gemma",
        activations=_APPROXIMATE,
        whole_heads=False,
        tied=True,
    ),
    Architecture(
        "gemma2",
        family="gemma2",
        activations=_APPROXIMATE,
        whole_heads=False,
        numbers=_CAPS,
        implied=_query_scale(46),
        windows=True,
        tied=True,
    ),
    Architecture(
        "gemma3",
        family="gemma3_text",
        activations=_APPROXIMATE,
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
        orders=TURNED,
    ),
    Architecture(
        "olmo2",
        family="olmo2",
        windowed="olmo3",
        windows=True,
    ),
    Architecture(
        "ernie4_5",
        family="ernie4_5",
        whole_heads=False,
        may_be_biased=(),
    ),
    Architecture(
        "seed_oss",
        family="seed_oss",
        whole_heads=False,
        names=POST_NORM,
        may_be_biased=("query", "key", "value"),
    ),
    Architecture(
        "granite",
        family="granite",
        orders=TURNED,
        numbers=GRANITE,
    ),
    Architecture(
        "command-r",
        family="cohere",
        epsilon=_LAYER,
        numbers={"logit_scale": "logit_scale"},
        tied=True,
        from_blocks=dict.fromkeys(HEAD_NORMS, 64),
    ),
    Architecture(
        "cohere2",
        family="cohere2",
        epsilon=_LAYER,
        numbers={"logit_scale": "logit_scale"},
        windows=True,
        tied=True,
    ),
    Architecture(
        "stablelm",
        family="stablelm",
        epsilon=_LAYER,
        flags=("use_parallel_residual",),
    ),
    Architecture("glm4", family="glm4", whole_heads=False),
    Architecture(
        "starcoder2",
        family="starcoder2",
        epsilon=_LAYER,
        activations=_APPROXIMATE,
        biases=("query", "key", "value", "output", "up", "down"),
    ),
    Architecture(
        "gpt2",
        family="gpt2",
        epsilon=_LAYER,
        activations=_APPROXIMATE[1:] + _APPROXIMATE[:1],
        rotates=False,
    ),
    Architecture(
        "bloom",
        family="bloom",
        epsilon=_LAYER,
        activations=_APPROXIMATE,
        orders={"qkv": _part_by_part},
        rotates=False,
    ),
    Architecture(
        "falcon",
        family="falcon",
        epsilon=_LAYER,
        activations=_GELUS,
        orders={"qkv": _part_by_part},
        names={
            "ln_attn": "blk.{block}.attn_norm_2",
            "ln_mlp": "blk.{block}.attn_norm",
        },
        seen=lambda tensors: {
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in tensors else 1,
        },
        from_blocks={"mlp_norm": LIMIT},
        may_be_biased=(),
    ),
    Architecture(
        "phi3",
        family="phi3",
        settings=_ORIGINAL,
        windows=True,
    ),
    Architecture(
        "qwen2moe",
        family="qwen2_moe",
        counts=EXPERTS | {"shared_inner": "expert_shared_feed_forward_length"},
        from_blocks=ALL_EXPERTS,
    ),
    Architecture(
        "qwen3moe",
        family="qwen3_moe",
        whole_heads=False,
        counts=EXPERTS,
        decided=lambda words: {"norm_topk_prob": True},
        from_blocks=ALL_EXPERTS,
    ),
    Architecture(
        "olmoe",
        family="olmoe",
        grouped=False,
        counts=EXPERTS,
        may_be_biased=(),
    ),
    Architecture(
        "granitemoe",
        family="granitemoe",
        orders=TURNED,
        numbers=GRANITE,
        counts=EXPERTS,
    ),
    Architecture(
        "gpt-oss",
        family="gpt_oss",
        whole_heads=False,
        counts=EXPERTS,
        windows=True,
        names=POST_NORM,
        biases=("query",),
    ),
    Architecture(
        "glm4moe",
        family="glm4_moe",
        whole_heads=False,
        numbers={"factor": "expert_weights_scale"},
        counts=EXPERTS
        | {"shared": "expert_shared_count", "dense_first": "leading_dense_block_count"},
        settings={"norm_topk_prob": "expert_weights_norm"},
        decided=lambda words: {"norm_topk_prob": False},
        fixed={"expert_gating_func": 2},
        names=POST_NORM,
    ),
    Architecture(
        "phi2",
        family="phi",
        epsilon=_LAYER,
        activations=_APPROXIMATE[1:],
        from_blocks=dict.fromkeys(HEAD_NORMS, LIMIT),
    ),
    replace(
        _DEEPSEEK,
        family="deepseek_v2",
        fixed={"expert_gating_func": 1, "expert_weights_norm": False},
    ),
    replace(
        _DEEPSEEK,
        counts={**_DEEPSEEK.counts, "groups": "expert_group_count"}
        | {"top_groups": "expert_group_used_count"},
        settings={"norm_topk_prob": "expert_weights_norm"},
        fixed={"expert_gating_func": 2},
    ),
    T5,
    RWKV6,
    RWKV7,
    *HYBRIDS,
)
"""An architecture with several rows is read by the first whose fixed keys a file has."""

ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    name: tuple(row for row in ROWS if row.name == name) for name in (row.name for row in ROWS)
}
ARCHITECTURE_OF_FAMILY = {model_type: row for row in ROWS for model_type in row.model_types}


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
    rows = ARCHITECTURES[name]
    fitting = [row for row in rows if all(_has(metadata, row, *each) for each in row.fixed.items())]
    return (fitting or rows)[0]


def _has(metadata: Metadata, row: Architecture, short: str, value: Value) -> bool:
    """Whether a key has a value; a missing one has that of the first row with it."""
    usual = next(each.fixed[short] for each in ARCHITECTURES[row.name] if short in each.fixed)
    said: bool = metadata.values.get(row.key(short), usual) == value
    return said
