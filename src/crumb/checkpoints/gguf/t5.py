"""t5 of llama.cpp: two halves with names of their own, and what its code fixes.

In: nothing. Out: its row. The farthest distance is always 128, and all blocks of a half share one
table of buckets. llama.cpp leaves out the scale before a tied head, so that its probabilities are
others there, and the most likely token the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from crumb.checkpoints.gguf.architecture import Architecture

_T5_BLOCK = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_o",
    "bias": "attn_rel_b",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_T5_NAMES = {
    "final_norm": "dec.output_norm",
    "encoder.final_norm": "enc.output_norm",
    "cross_norm": "dec.blk.{block}.cross_attn_norm",
    **{
        f"cross_{role}": f"dec.blk.{{block}}.cross_attn_{role[0]}"
        for role in ("query", "key", "value", "output")
    },
    **{role: f"dec.blk.{{block}}.{name}" for role, name in _T5_BLOCK.items()},
    **{f"encoder.{role}": f"enc.blk.{{block}}.{name}" for role, name in _T5_BLOCK.items()},
}


def _gated_mlp(tensors: Collection[str]) -> Mapping[str, Any]:
    """T5's MLP is gated by a gelu, or plain with a relu: a file has no other."""
    is_gated = "enc.blk.0.ffn_gate.weight" in tensors
    return {"feed_forward_proj": "gated-gelu" if is_gated else "relu"}


T5 = Architecture(
    "t5",
    family="t5",
    epsilon="attention.layer_norm_rms_epsilon",
    activations=("relu", "gelu_new"),
    orders={},
    whole_heads=False,
    rotates=False,
    counts={
        "decoder_blocks": "decoder_block_count",
        "buckets": "attention.relative_buckets_count",
    },
    settings={"decoder_start_token_id": "decoder_start_token_id"},
    seen=_gated_mlp,
    names=_T5_NAMES,
)
