"""stablelm: llama with layer norms, a quarter of each head rotating, and a parallel variant."""

from dataclasses import replace

from crumb.architectures.block import PARALLEL_OF_ONE_NORM, SEQUENTIAL, Block
from crumb.architectures.configuration import refuse
from crumb.architectures.family import LAYER
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.reader import Reader


def _block(reader: Reader, _: int) -> Block:
    if reader.flag("qk_layernorm"):
        raise refuse("qk_layernorm", "false: a norm for each head is not read", True)
    return PARALLEL_OF_ONE_NORM if reader.flag("use_parallel_residual") else SEQUENTIAL


FAMILY = replace(
    LLAMA,
    model_type="stablelm",
    keys={
        **{word: key for word, key in LLAMA.keys.items() if word != "head_dim"},
        "epsilon": "layer_norm_eps",
    },
    defaults={
        **LLAMA.defaults,
        "key_value_heads": 32,
        "epsilon": 1e-5,
        "positions": 4096,
        "rotary_share": 0.25,
    },
    biases=dict.fromkeys(("query", "key", "value"), "use_qkv_bias"),
    norm=LAYER,
    block=_block,
)
