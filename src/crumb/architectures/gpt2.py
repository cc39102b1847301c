"""gpt2: learned positions, all weights of blocks stored transposed, scores by depth on demand."""

from dataclasses import replace

from crumb.architectures.family import BlockKind, Fused, Multipliers
from crumb.architectures.gpt_neo import FAMILY as NEO
from crumb.architectures.gptj import FAMILY as GPTJ
from crumb.architectures.reader import Reader

BLOCK = "transformer.h.{block}."
APART = ("query", "key", "value")
MATRICES = ("qkv", "output", "up", "down")


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    by_depth = reader.flag("scale_attn_by_inverse_layer_idx")
    return tuple(
        BlockKind(None, scale=1.0 / (block + 1) if by_depth else 1.0)
        for block in range(reader.sizes.blocks)
    )


FAMILY = replace(
    NEO,
    model_type="gpt2",
    keys={word: key for word, key in GPTJ.keys.items() if word != "rotary_dimensions"},
    defaults={**NEO.defaults, "positions": 1024, "scale_attn_weights": True},
    tensors={
        **{role: name for role, name in NEO.tensors.items() if role not in APART},
        "qkv": BLOCK + "attn.c_attn",
        "output": BLOCK + "attn.c_proj",
    },
    biases=dict.fromkeys(MATRICES, True),
    fused=Fused(outer=1),
    kinds=_kinds,
    multipliers=lambda reader: Multipliers(
        attention=None if reader.flag("scale_attn_weights") else 1.0
    ),
    transposed=MATRICES,
)
