"""rwkv6 and rwkv7 of llama.cpp: how files hold token shifts, low ranks and their biases.

In: nothing. Out: their rows. The norm of heads has one epsilon, fixed in its code. RWKV-7's first
block has ranks of values too, those of shares once more, which nobody reads. What RWKV-6 adds to
the stream may lie divided, and the stream is then halved every so many blocks.
"""

from __future__ import annotations

from dataclasses import replace

from crumb.architectures.drifting_mix import DRIFTING
from crumb.checkpoints.gguf.architecture import Architecture

MIX = "blk.{block}.time_mix_"

HEAD_EPSILON = 64e-5

LOW_RANKS = {"pace": "w", "share": "a", "first": "v", "pass": "g"}

SHIFTS = ("receptance", "pace", "key", "value", "share", "pass")
"""In the order of the one tensor that has them all."""

_RWKV = Architecture(
    "rwkv",
    family="rwkv",
    epsilon="attention.layer_norm_epsilon",
    attends=False,
    rotates=False,
    decided=lambda words: {"head_norm_eps": HEAD_EPSILON},
    own_head=True,
    names={
        "mlp_norm": "blk.{block}.attn_norm_2",
        **{role: f"{MIX}{role}" for role in ("receptance", "key", "value", "output")},
        "mixed_norm": f"{MIX}ln",
        "up_mix": "blk.{block}.channel_mix_lerp_k",
        "up": "blk.{block}.channel_mix_key",
        "down": "blk.{block}.channel_mix_value",
    },
)

RWKV6 = replace(
    _RWKV,
    name="rwkv6",
    family="rwkv6",
    activations=("relu2",),
    counts={
        "wkv_dim": "wkv.head_size",
        "mix_rank": "time_mix_extra_dim",
        "pace_rank": "time_decay_extra_dim",
        "halved_every": "rescale_every_n_layers",
    },
    names={
        **_RWKV.names,
        **{f"{role}_mix": f"{MIX}lerp_fused" for role in DRIFTING},
        "mix_mix": f"{MIX}lerp_x",
        "mix_down": f"{MIX}w1",
        "mix_up": f"{MIX}w2",
        "decay": f"{MIX}decay",
        "decay_down": f"{MIX}decay_w1",
        "decay_up": f"{MIX}decay_w2",
        "bonus": f"{MIX}first",
        "pass": f"{MIX}gate",
        "gate": "blk.{block}.channel_mix_receptance",
        "gate_mix": "blk.{block}.channel_mix_lerp_r",
    },
    together=tuple(f"{role}_mix" for role in DRIFTING),
    slabs={"mix_up": len(DRIFTING)},
)

RWKV7 = replace(
    _RWKV,
    name="rwkv7",
    family="rwkv7",
    activations=("sqrelu",),
    counts={
        "wkv_dim": "wkv.head_size",
        "pace_rank": "attention.decay_lora_rank",
        "share_rank": "attention.iclr_lora_rank",
        "first_rank": "attention.value_residual_mix_lora_rank",
        "pass_rank": "attention.gate_lora_rank",
    },
    names={
        **_RWKV.names,
        **{f"{role}_down": f"{MIX}{letter}1" for role, letter in LOW_RANKS.items()},
        **{f"{role}_up": f"{MIX}{letter}2" for role, letter in LOW_RANKS.items()},
        **{f"{role}_mix": f"{MIX}lerp_fused" for role in SHIFTS},
        "direction": f"{MIX}k_k",
        "renewal": f"{MIX}k_a",
        "bonus": f"{MIX}r_k",
    },
    bias_names={f"{role}_up": f"{MIX}{LOW_RANKS[role]}0" for role in ("pace", "share", "first")},
    together=tuple(f"{role}_mix" for role in SHIFTS),
    flat=("bonus",),
    repeated={f"blk.0.time_mix_v{k}.weight": f"blk.0.time_mix_a{k}.weight" for k in range(3)},
)
