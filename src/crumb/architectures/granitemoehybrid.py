"""granitemoehybrid: Granite 4, Mamba-2's scan in most blocks, an MLP in all, perhaps experts."""

from dataclasses import replace

from crumb.architectures.block import Block, FeedForward, Sum
from crumb.architectures.family import alike, no_rotation
from crumb.architectures.granitemoe import FAMILY as GRANITEMOE
from crumb.architectures.kinds import attending_blocks
from crumb.architectures.mixture import Routing, mixture, sequential
from crumb.architectures.reader import Reader
from crumb.architectures.scan import SCAN_BIASES, SCAN_DEFAULTS, SCAN_KEYS, Scan, scan_tensors


def _block(reader: Reader, block: int) -> Block:
    usual = [False] * reader.sizes.blocks
    mixer = None if attending_blocks(reader, "linear_attention", usual)[block] else Scan()
    if not reader.size("experts", lowest=0):
        return sequential(FeedForward(), attention=mixer)
    experts = mixture(reader, Routing("none", "softmax"))
    added = Sum("mlp", "shared", "mlp")
    return sequential(experts, FeedForward(output="shared"), added, attention=mixer)


FAMILY = replace(
    GRANITEMOE,
    model_type="granitemoehybrid",
    keys={**GRANITEMOE.keys, **SCAN_KEYS, "feed_forward": "shared_intermediate_size"},
    defaults={**GRANITEMOE.defaults, **SCAN_DEFAULTS, "feed_forward": 1024},
    tensors={
        **GRANITEMOE.tensors,
        **scan_tensors("model.layers.{block}.mamba"),
        "gate_up": "model.layers.{block}.shared_mlp.input_linear",
        "down": "model.layers.{block}.shared_mlp.output_linear",
    },
    biases={**GRANITEMOE.biases, **SCAN_BIASES},
    block=_block,
    kinds=lambda reader: (
        alike if reader.configuration.get("position_embedding_type") == "rope" else no_rotation
    )(reader),
)
