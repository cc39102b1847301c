"""lfm2_moe: LFM2 with experts in all blocks but the first ones."""

from dataclasses import replace

from crumb.architectures.block import Block, FeedForward
from crumb.architectures.configuration import Configuration, read_flag
from crumb.architectures.kinds import attending_blocks
from crumb.architectures.lfm2 import FAMILY as LFM2
from crumb.architectures.mixture import Routing, mixture, sequential
from crumb.architectures.reader import Reader
from crumb.architectures.short_convolution import ShortConvolution

MLP = "model.layers.{block}.feed_forward."
EXPERTS = {"gate": "w1", "up": "w3", "down": "w2"}


def _restate(configuration: Configuration) -> Configuration:
    tied = read_flag(configuration, "tie_word_embeddings", True)
    tied = read_flag(configuration, "tie_embedding", tied)
    return {**configuration, "tie_word_embeddings": tied}


def _block(reader: Reader, block: int) -> Block:
    usual = [True] * reader.sizes.blocks
    mixer = None if attending_blocks(reader, "conv", usual)[block] else ShortConvolution()
    if block < reader.size("dense_first", lowest=0):
        return sequential(FeedForward(), attention=mixer)
    routing = Routing(
        "sigmoid",
        "sum" if reader.flag("norm_topk_prob") else "none",
        biased=reader.flag("use_expert_bias"),
        floor=1e-6,
        factor=reader.number("factor"),
    )
    return sequential(mixture(reader, routing), attention=mixer)


FAMILY = replace(
    LFM2,
    model_type="lfm2_moe",
    keys={word: key for word, key in LFM2.keys.items() if word != "attending"}
    | {"experts": "num_experts", "used": "num_experts_per_tok"}
    | {"expert_inner": "moe_intermediate_size", "dense_first": "num_dense_layers"}
    | {"factor": "routed_scaling_factor"},
    defaults={**LFM2.defaults, "experts": 32, "used": 4, "expert_inner": 1792, "dense_first": 2}
    | {"factor": 1.0, "norm_topk_prob": True, "use_expert_bias": True},
    tensors={
        **LFM2.tensors,
        "router": f"{MLP}gate",
        "router_choice": f"{MLP}expert_bias",
        **{f"expert_{role}": f"{MLP}experts.{{{{expert}}}}.{w}" for role, w in EXPERTS.items()},
    },
    block=_block,
    restate=_restate,
)
