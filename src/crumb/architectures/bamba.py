"""bamba: Bamba, Mamba-2's scan in most blocks and attention in some, an MLP in all."""

from dataclasses import replace

from crumb.architectures.block import Block, FeedForward
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import block_list, sequential
from crumb.architectures.reader import Reader
from crumb.architectures.scan import SCAN_BIASES, SCAN_DEFAULTS, SCAN_KEYS, Scan, scan_tensors

PARTS = ("gate", "up", "down")


def _block(reader: Reader, block: int) -> Block:
    attends = block in (block_list(reader, "attending") or ())
    return sequential(FeedForward(), attention=None if attends else Scan())


FAMILY = replace(
    LLAMA,
    model_type="bamba",
    keys={**LLAMA.keys, **SCAN_KEYS, "attending": "attn_layer_indices"},
    defaults={**LLAMA.defaults, **SCAN_DEFAULTS, "key_value_heads": 8, "positions": 262144}
    | {"epsilon": 1e-5, "rotary_share": 0.5, "attending": None},
    tensors={**LLAMA.tensors}
    | {
        **scan_tensors("model.layers.{block}.mamba"),
        "mlp_norm": "model.layers.{block}.pre_ff_layernorm",
        **{role: f"model.layers.{{block}}.feed_forward.{role}_proj" for role in PARTS},
        "final_norm": "model.final_layernorm",
    },
    biases={**LLAMA.biases, **SCAN_BIASES},
    block=_block,
)
