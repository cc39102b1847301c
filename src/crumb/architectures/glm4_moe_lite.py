"""glm4_moe_lite: GLM-4.7 Flash: deepseek_v3 of another size, its dense blocks in a list."""

from dataclasses import replace

from crumb.architectures.block import Block
from crumb.architectures.configuration import check_kinds
from crumb.architectures.deepseek_v3 import FAMILY as DEEPSEEK
from crumb.architectures.latent import latent_attention
from crumb.architectures.mixture import sigmoid_routing, with_shared
from crumb.architectures.reader import Reader

LISTED, KINDS = "mlp_layer_types", ("sparse", "dense")


def _block(reader: Reader, block: int) -> Block:
    kinds, dense = reader.configuration.get(LISTED), block == 0
    if kinds is not None:
        dense = check_kinds(kinds, LISTED, reader.sizes.blocks, KINDS)[block] == KINDS[1]
    attention = latent_attention(reader, reader.flag("rope_interleave"))
    return with_shared(reader, block, sigmoid_routing(reader), attention, dense)


FAMILY = replace(
    DEEPSEEK,
    model_type="glm4_moe_lite",
    keys={word: key for word, key in DEEPSEEK.keys.items() if word != "dense_first"},
    defaults={**DEEPSEEK.defaults, "positions": 202752, "epsilon": 1e-5, "query_rank": 768}
    | {"plain": 192, "value_dim": 256, "experts": 64, "used": 4, "expert_inner": 1536}
    | {"groups": 1, "top_groups": 1, "factor": 1.8},
    block=_block,
)
