"""qwen3_next: Qwen3-Next, a gated delta rule in three of four blocks, gated attention, experts."""

from dataclasses import replace

from crumb.architectures.block import BlockRow
from crumb.architectures.delta_net import DeltaNet, GatedAttention
from crumb.architectures.family import RMS_OF_ONE_MORE, HeadNorm, alike
from crumb.architectures.kinds import attending_blocks
from crumb.architectures.mixture import with_gated_expert
from crumb.architectures.qwen2_moe import FAMILY as QWEN2_MOE
from crumb.architectures.qwen3_moe import FAMILY as QWEN3_MOE
from crumb.architectures.reader import Reader

DELTA = "model.layers.{block}.linear_attn."


def mixer_of(reader: Reader, block: int) -> BlockRow:
    """What mixes the tokens of a block. Raises: CheckpointError."""
    every, blocks = reader.size("attends_every"), reader.sizes.blocks
    usual = [index % every == every - 1 for index in range(blocks)]
    attends = attending_blocks(reader, "linear_attention", usual)[block]
    return GatedAttention() if attends else DeltaNet()


FAMILY = replace(
    QWEN3_MOE,
    model_type="qwen3_next",
    keys={
        **QWEN3_MOE.keys,
        "shared_inner": "shared_expert_intermediate_size",
        "key_heads": "linear_num_key_heads",
        "value_heads": "linear_num_value_heads",
        "delta_key_dim": "linear_key_head_dim",
        "delta_value_dim": "linear_value_head_dim",
        "taps": "linear_conv_kernel_dim",
        "attends_every": "full_attention_interval",
    },
    defaults={**QWEN3_MOE.defaults}
    | {"key_value_heads": 2, "head_dim": 256, "rotary_share": 0.25, "norm_topk_prob": True}
    | {"experts": 512, "used": 10, "expert_inner": 512, "shared_inner": 512, "taps": 4}
    | {"attends_every": 4}
    | {"key_heads": 16, "value_heads": 32, "delta_key_dim": 128, "delta_value_dim": 128},
    tensors={role: name for role, name in QWEN2_MOE.tensors.items() if role != "qkv"}
    | {role: name for role, name in QWEN3_MOE.tensors.items() if role.endswith("_norm")}
    | {
        "delta_in": f"{DELTA}in_proj_qkvz",
        "delta_paces": f"{DELTA}in_proj_ba",
        "delta_taps": f"{DELTA}conv1d",
        "delta_rate": f"{DELTA}A_log",
        "delta_bias": f"{DELTA}dt_bias",
        "delta_norm": f"{DELTA}norm",
        "delta_output": f"{DELTA}out_proj",
    },
    norm=RMS_OF_ONE_MORE,
    head_norm=HeadNorm("rms", offset=1.0),
    kinds=alike,
    block=lambda reader, block: with_gated_expert(reader, block, mixer_of(reader, block)),
)
