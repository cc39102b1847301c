"""llama4_text: Llama 4 without its eyes: chunks, blocks that do not rotate, scaled inputs."""

from dataclasses import replace

from crumb.architectures.block import Block, FeedForward, Sum
from crumb.architectures.configuration import refuse
from crumb.architectures.family import BlockKind, Stacked
from crumb.architectures.kinds import chunks_of
from crumb.architectures.llama import FAMILY as LLAMA
from crumb.architectures.mixture import LOCAL_KEYS, Routing, is_sparse, mixture, sequential
from crumb.architectures.reader import Reader
from crumb.architectures.smollm3 import rotating_blocks
from crumb.operations.places import Temperature

TUNED, PARTS = "attn_temperature_tuning", ("gate", "up", "down")
MLP = "model.layers.{block}.feed_forward"
DENSE = {part: f"{MLP}.{part}_proj" for part in PARTS}
SHARED = {f"shared_{part}": f"{MLP}.shared_expert.{part}_proj" for part in PARTS}
EACH = {f"expert_{part}": f"{MLP}.experts.{{{{expert}}}}.{part}_proj" for part in PARTS}


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    rotating, tuned = rotating_blocks(reader), reader.configuration.get(TUNED, True)
    if not isinstance(tuned, int):  # the first files have a number
        raise refuse(TUNED, "true or false", tuned)
    heat = Temperature(reader.number("rate"), reader.number("span"), 1) if tuned else None
    turning = BlockKind(reader.rope(), normed=reader.flag("use_qk_norm"))
    still = BlockKind(None, temperature=heat)
    every = zip(rotating, chunks_of(reader, rotating), strict=True)
    return tuple(replace(turning if turns else still, chunk=chunk) for turns, chunk in every)


def _block(reader: Reader, block: int) -> Block:
    if not is_sparse(reader, block):
        return sequential(FeedForward())
    experts = replace(mixture(reader, Routing("none", "sigmoid")), shares_first=True)
    shared = FeedForward(output="shared", prefix="shared_", inner=experts.inner)
    return sequential(experts, shared, Sum("mlp", "shared", "mlp"))


FAMILY = replace(
    LLAMA,
    model_type="llama4_text",
    keys={**LLAMA.keys, **LOCAL_KEYS, "feed_forward": "intermediate_size_mlp"}
    | {"sparse_blocks": "moe_layers", "sparse_step": "interleave_moe_layer_step"}
    | {"chunk": "attention_chunk_size", "rate": "attn_scale", "span": "floor_scale"},
    defaults={**LLAMA.defaults, "key_value_heads": 8, "head_dim": 128, "epsilon": 1e-5}
    | {"positions": 131072, "theta": 5e5, "feed_forward": 16384, "expert_inner": 8192}
    | {"experts": 16, "used": 1, "sparse_step": 1, "sparse_blocks": None, "chunk": 8192}
    | {"rate": 0.1, "span": 8192, "use_qk_norm": True},
    tensors={**LLAMA.tensors, **DENSE, **SHARED, **EACH, "router": f"{MLP}.router"},
    rotary="interleaved",
    biases=dict.fromkeys(("query", "key", "value", "output"), "attention_bias"),
    kinds=_kinds,
    block=_block,
    stacked=(
        Stacked(f"{MLP}.experts.gate_up_proj", ("expert_gate", "expert_up"), transposed=True),
        Stacked(f"{MLP}.experts.down_proj", ("expert_down",), transposed=True),
    ),
)
