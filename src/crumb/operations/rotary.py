"""Rotary: position embedding by rotation of pairs of features.

In: f32 (batch, tokens, heads * head_dim) and positions (batch, tokens). Out: the same shape.
Positions are consecutive and the same in every row of a batch. Source: RoFormer, arXiv 2104.09864.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    NativeProgram,
    Needs,
    Operation,
    Row,
    same_width,
)
from crumb.operations.rope import Rope


@dataclass(frozen=True)
class Rotary(Operation):
    """The first rope.dimensions features of each head, turned in pairs by their position.

    style "half" pairs feature i with i + dimensions/2, "interleaved" pairs 2i with 2i + 1.
    """

    READS = ("input", "positions")

    input: str  # (batch, tokens, heads * head_dim)
    positions: str  # (batch, tokens)
    output: str
    heads: int
    style: str
    rope: Rope


def rotation(rope: Rope, positions: Array, context: Context) -> tuple[Array, Array]:
    """Cosine and sine for each position and pair, (tokens, 1, dimensions / 2)."""
    xp = array_namespace(positions)
    first, count = int(positions[0, 0]), positions.shape[1]
    longest = context.longest_tokens or first + count
    key = (rope, first, count)
    if key not in context.rotations:
        device = positions.device
        places = xp.astype(positions[0, :], xp.float64)
        frequencies = xp.asarray(rope.frequencies(longest), device=device)
        angle = places[:, None, None] * frequencies[None, None, :]
        magnitude = rope.magnitude()
        context.rotations[key] = (
            xp.astype(xp.cos(angle) * magnitude, xp.float32),
            xp.astype(xp.sin(angle) * magnitude, xp.float32),
        )
    return context.rotations[key]


def rotation_table(rope: Rope, positions: int) -> NDArray[np.float32]:
    """Cosines, then sines, of each position and pair, (positions, dimensions)."""
    places = np.arange(positions, dtype=np.float64)
    angle = places[:, None] * rope.frequencies(positions)[None, :]
    both = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    table: NDArray[np.float32] = (both * rope.magnitude()).astype(np.float32)
    return table


def _turned(op: Rotary, x: Array, cosine: Array, sine: Array) -> Array:
    xp = array_namespace(x)
    heads = xp.reshape(x, (*x.shape[:-1], op.heads, -1))
    dimensions = op.rope.dimensions
    turning, rest = heads[..., :dimensions], heads[..., dimensions:]
    if op.style == "half":
        a, b = turning[..., : dimensions // 2], turning[..., dimensions // 2 :]
        turned = xp.concat([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        pairs = xp.stack([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
        turned = xp.reshape(pairs, turning.shape)
    if rest.shape[-1]:
        turned = xp.concat([turned, rest], axis=-1)
    return xp.reshape(turned, x.shape)


def _reference(op: Rotary, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    x, positions = reads
    return (_turned(op, x, *rotation(op.rope, positions, context)),)


def _gradient(
    op: Rotary, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    cosine, sine = rotation(op.rope, reads[1], context)
    return (_turned(op, output[0], cosine, -sine), None), {}


def _native(op: Rotary, program: NativeProgram) -> None:
    program.add(
        "rotary",
        input=program.buffer(op.input),
        out=program.buffer(op.output),
        heads=op.heads,
        dimensions=op.rope.dimensions,
        interleaved=op.style == "interleaved",
        turns=program.turns(op.rope),
    )


def _needs(op: Rotary) -> Needs:
    return Needs(table=op.rope, table_width=op.rope.dimensions)


ROW = Row(Rotary, same_width, _reference, _gradient, _native, needs=_needs)
