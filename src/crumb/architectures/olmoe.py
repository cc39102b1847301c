"""olmoe: OLMoE: llama with experts, all heads normalised together, and clipped."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.family import HeadNorm, Multipliers
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import QWEN_KEYS, QWEN_TENSORS, Routing, mixture, sequential
from crumb.architectures.reader import Reader


def _block(reader: Reader, _: int) -> Block:
    finish = "sum" if reader.flag("norm_topk_prob") else "none"
    return sequential(mixture(reader, Routing("softmax", finish)))


FAMILY = replace(
    LLAMA,
    model_type="olmoe",
    keys={
        **{word: key for word, key in LLAMA.keys.items() if word != "head_dim"},
        "experts": QWEN_KEYS["experts"],
        "used": QWEN_KEYS["used"],
        "expert_inner": "intermediate_size",
        "clip": "clip_qkv",
    },
    defaults={**LLAMA.defaults, "epsilon": 1e-5, "positions": 4096, "norm_topk_prob": False}
    | {"experts": 64, "used": 8, "clip": None},
    tensors={
        **{
            role: name for role, name in LLAMA.tensors.items() if role not in ("gate", "up", "down")
        },
        **QWEN_TENSORS,
        "query_norm": "model.layers.{block}.self_attn.q_norm",
        "key_norm": "model.layers.{block}.self_attn.k_norm",
    },
    biases={role: flag for role, flag in LLAMA.biases.items() if flag == "attention_bias"},
    head_norm=HeadNorm("rms", whole=True),
    multipliers=lambda reader: Multipliers(clip=reader.optional_number("clip")),
    block=_block,
)
