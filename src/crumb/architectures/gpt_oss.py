"""gpt_oss: gpt-oss 20B and 120B: sinks, every other window, clamped experts with biases."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.configuration import read_window
from crumb.architectures.family import BlockKind, Stacked
from crumb.architectures.kinds import sliding_blocks
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import QWEN_KEYS, QWEN_TENSORS, Routing, mixture, sequential
from crumb.architectures.reader import Reader
from crumb.operations.experts import CLAMPED

PARTS = ("gate", "up", "down")
EXPERTS = "model.layers.{block}.mlp.experts"
BOTH = ("expert_gate", "expert_up")
ROPE = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
ROPE |= {"truncate": False, "original_max_position_embeddings": 4096}


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    window = read_window(reader.configuration, "sliding_window", 128)
    sliding = sliding_blocks(reader, lambda block: block % 2 == 0)
    return tuple(BlockKind(reader.rope(), window if each else None) for each in sliding)


def _block(reader: Reader, _: int) -> Block:
    slope, limit = reader.number("slope"), reader.number("limit")
    return sequential(mixture(reader, Routing("none", "softmax"), CLAMPED, slope, limit))


FAMILY = replace(
    LLAMA,
    model_type="gpt_oss",
    keys={**LLAMA.keys, "experts": QWEN_KEYS["experts"], "used": QWEN_KEYS["used"]}
    | {"expert_inner": "intermediate_size", "slope": "swiglu_alpha", "limit": "swiglu_limit"},
    defaults={**LLAMA.defaults, "key_value_heads": 8, "head_dim": 64, "epsilon": 1e-5}
    | {"positions": 131072, "theta": 150000.0, "rope": ROPE, "attention_bias": True}
    | {"experts": 128, "used": 4, "slope": 1.702, "limit": 7.0},
    tensors={
        **{role: name for role, name in LLAMA.tensors.items() if role not in PARTS},
        **QWEN_TENSORS,
        "router": "model.layers.{block}.mlp.router",
        "sinks": "model.layers.{block}.self_attn.sinks",
    },
    biases={
        **dict.fromkeys(("query", "key", "value", "output"), "attention_bias"),
        **dict.fromkeys(("router", "expert_gate", "expert_up", "expert_down"), True),
    },
    kinds=_kinds,
    block=_block,
    stacked=(
        Stacked(f"{EXPERTS}.gate_up_proj", BOTH, transposed=True, interleaved=True),
        Stacked(f"{EXPERTS}.gate_up_proj_bias", BOTH, "bias", interleaved=True),
        Stacked(f"{EXPERTS}.down_proj", ("expert_down",), transposed=True),
        Stacked(f"{EXPERTS}.down_proj_bias", ("expert_down",), "bias"),
    ),
)
