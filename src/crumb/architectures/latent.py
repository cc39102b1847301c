"""Latent attention as a row of a block: keys and values of all heads from one short vector.

In: a family's words "rank", "query_rank", "plain", "head_dim" (what rotates) and "value_dim", its
roles "latent_down", "latent_norm", "latent_up", "query" or "query_down", "query_norm", "query_up".
Out: operations of the absorbed form: the cache has the latent and the rotated key alone.
Source: arXiv 2405.04434, section 2.1. Refuses what architectures/reader.py refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crumb.operations.attention import Attention
from crumb.operations.headlinear import HeadLinear
from crumb.operations.join import Join
from crumb.operations.norm import Norm
from crumb.operations.operation import Operation
from crumb.operations.rotary import Rotary
from crumb.operations.split import Split

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder
    from crumb.architectures.reader import Reader

EPSILON = 1e-6
"""Of the norms of latents, whatever the configuration says of the others."""


@dataclass(frozen=True)
class LatentAttention:
    """Every head reads the latent through a matrix of its own, and one rotated key."""

    rank: int
    query_rank: int | None  # None: one matrix makes the queries
    plain: int  # features of a query that do not rotate
    turning: int  # and of those that do
    value_dim: int
    style: str
    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        sizes, rope = builder.sizes, builder.kinds[block].rope
        assert rope is not None, "the families with latents rotate"
        heads, whole = sizes.heads, self.rank + self.turning
        up = builder.family.tensors["latent_up"].format(block=block)
        scale = (self.plain + self.turning) ** -0.5 * rope.sharpness()
        both = (self.rank, self.turning)
        mixed = Attention(
            "latent_query",
            "latent_key",
            None,
            "mixed_latents",
            heads,
            1,
            whole,
            scale,
            causal=True,
            window=None,
            state=f"block.{block}",
            value_dim=self.rank,
        )
        return [
            *self._queries(builder, block),
            Split("query", ("plain", "turning"), heads, (self.plain, self.turning)),
            builder.linear("latent_down", self.input, "key", (sizes.hidden, whole), block),
            Split("key", ("latent", "turning_key"), 1, both),
            self._norm(builder, "latent_norm", "latent", self.rank, block),
            Rotary("turning", "positions", "turning", heads, self.style, rope),
            Rotary("turning_key", "positions", "turning_key", 1, self.style, rope),
            HeadLinear(
                "plain", "absorbed", f"{up}.{{head}}.key.weight", heads, self.plain, self.rank
            ),
            Join(("absorbed", "turning"), "latent_query", both, heads),
            Join(("latent", "turning_key"), "latent_key", both, 1),
            mixed,
            HeadLinear(
                "mixed_latents",
                "mixed",
                f"{up}.{{head}}.value.weight",
                heads,
                self.rank,
                self.value_dim,
            ),
            builder.linear(
                "output", "mixed", self.output, (heads * self.value_dim, sizes.hidden), block
            ),
        ]

    def _queries(self, builder: Builder, block: int) -> list[Operation]:
        hidden = builder.sizes.hidden
        width = builder.sizes.heads * (self.plain + self.turning)
        if self.query_rank is None:
            return [builder.linear("query", self.input, "query", (hidden, width), block)]
        return [
            builder.linear(
                "query_down", self.input, "query_latent", (hidden, self.query_rank), block
            ),
            self._norm(builder, "query_norm", "query_latent", self.query_rank, block),
            builder.linear("query_up", "query_latent", "query", (self.query_rank, width), block),
        ]

    def _norm(self, builder: Builder, role: str, name: str, width: int, block: int) -> Norm:
        return Norm(name, name, "rms", builder.name(role, block), None, EPSILON, width)


def latent_attention(reader: Reader, interleaved: bool = True) -> LatentAttention:
    """The attention of a configuration. Raises: CheckpointError."""
    return LatentAttention(
        rank=reader.size("rank"),
        query_rank=None if reader.find("query_rank")[1] is None else reader.size("query_rank"),
        plain=reader.size("plain"),
        turning=reader.sizes.head_dim,
        value_dim=reader.size("value_dim"),
        style="interleaved" if interleaved else "half",
    )


LATENT_KEYS: dict[str, str | tuple[str, ...]] = {
    "rank": "kv_lora_rank",
    "query_rank": "q_lora_rank",
    "plain": "qk_nope_head_dim",
    "head_dim": "qk_rope_head_dim",
    "rotary_dimensions": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
}
_ATTENTION = "model.layers.{block}.self_attn"
LATENT_TENSORS = {
    "query": f"{_ATTENTION}.q_proj",
    "query_down": f"{_ATTENTION}.q_a_proj",
    "query_norm": f"{_ATTENTION}.q_a_layernorm",
    "query_up": f"{_ATTENTION}.q_b_proj",
    "latent_down": f"{_ATTENTION}.kv_a_proj_with_mqa",
    "latent_norm": f"{_ATTENTION}.kv_a_layernorm",
    "latent_up": f"{_ATTENTION}.kv_b_proj",
    "output": f"{_ATTENTION}.o_proj",
}
"""What DeepSeek calls its parts."""
