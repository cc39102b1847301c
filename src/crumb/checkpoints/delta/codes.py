"""Codes against plain rounding of the base's weights: what a solver decided, in few bits.

In: a base's weights and the stored parameters, with the codes, or with a piece that holds them.
Out: the piece's arrays, or the codes. A code is written as its distance from the nearest one,
counted towards the side the weight leans to; how likely it moved follows from how far the weight
leans and from its column, so each bit stands among bits of like odds before zstandard packs it.
Every step that both sides take is exact or one rounded f32 operation. Refuses codes out of range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.delta.piece import PieceReader, PieceWriter
from crumb.errors import CheckpointError
from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.grid import GroupParameters, group_of_column, take_rows
from crumb.kernels.threads import over_rows

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PLACES = 8
"""Steps in which it is told how far a weight leans to one side of its nearest code."""

CLASSES = 16
CONTEXTS = CLASSES * 2 * PLACES
"""Classes of columns, times places for inner codes and for the first and last code."""

CLASSES_PER_DOUBLING = 4
ROUNDING_SPREAD = 12**-0.5
"""The spread of a plain rounding error in steps: class 0; each class is 2^(1/4) wider."""

SIZE_PLANES = 3
"""Distances up to this + 1 are bits; the rare longer ones end as a byte."""

FARTHEST = np.float32(1 << 14)
"""Positions beyond are drawn in: no code is there, and whole numbers stay exact."""

CODE_TABLE_BITS = 200
"""What a level costs by itself, about: its frame, its Huffman table, the fill of its last byte."""


WEIGHTS_AT_ONCE = 1 << 16
"""Weights whose arrays of f32 stay in the processor's cache together."""

Placed = tuple[NDArray[np.int16], NDArray[np.int8], Bytes]


@dataclass(frozen=True)
class Nearest:
    """Plain rounding of a matrix on the stored grid, each (rows, columns)."""

    rank: NDArray[np.int16]  # of the nearest code, by what codes decode to
    toward: NDArray[np.int8]  # 1 or -1: the side the weight leans to; inwards at either end
    place: Bytes  # how far it leans, below 2 * PLACES


def order_of(format: Format) -> Bytes:
    """Codes in the order of what they decode to; whole numbers are in order."""
    table = format.row.table
    levels = np.arange(1 << format.bits) if table is None else np.array(table)
    return np.argsort(levels, kind="stable").astype(np.uint8)


def round_plainly(weights: Floats, parameters: GroupParameters, format: Format) -> Nearest:
    """The nearest code of each weight and how far the weight is from it."""
    shape = weights.shape
    rank, toward, place = (np.empty(shape, dtype) for dtype in (np.int16, np.int8, np.uint8))
    nearest = Nearest(rank, toward, place)
    rows_at_once = max(1, WEIGHTS_AT_ONCE // shape[1])

    def work(share: slice) -> None:
        for begin in range(share.start, share.stop, rows_at_once):
            rows = slice(begin, min(begin + rows_at_once, share.stop))
            part = _round_rows(weights[rows], take_rows(parameters, rows), format)
            nearest.rank[rows], nearest.toward[rows], nearest.place[rows] = part

    over_rows(shape[0], work)
    return nearest


def _round_rows(weights: Floats, parameters: GroupParameters, format: Format) -> Placed:
    group = group_of_column(format, weights.shape[1])
    scale, offset = parameters.group_scale()[:, group], parameters.offset(format)[:, group]
    base = offset if format.zero is ZeroKind.MINIMUM else np.float32(0)
    with np.errstate(all="ignore"):
        quotient = (weights - base) / scale
        # fmin and fmax turn NaN, of a scale of 0 or a damaged weight, into a number.
        quotient = np.fmax(np.fmin(quotient, FARTHEST), -FARTHEST)
        if format.row.table is not None:
            rank, lean = _in_table(quotient, format)
        else:
            zero = np.float32(0) if format.zero is ZeroKind.MINIMUM else offset
            nearest = np.clip(np.rint(quotient) + zero, 0, format.row.largest_code)
            rank, lean = nearest.astype(np.int16), quotient - (nearest - zero)
    return _placed(rank, lean, format.row.largest_code)


def _in_table(quotient: Floats, format: Format) -> tuple[NDArray[np.int16], Floats]:
    """Rank of the nearest value of a table, and the distance in gaps to the next one there."""
    levels = np.sort(np.array(format.row.table, np.float32))
    rank = np.searchsorted((levels[1:] + levels[:-1]) / np.float32(2), quotient).astype(np.int16)
    away = quotient - levels[rank]
    gaps = np.maximum(np.diff(levels), np.float32(1))
    gap = np.where(away < 0, gaps[np.maximum(rank - 1, 0)], gaps[np.minimum(rank, len(gaps) - 1)])
    lean: Floats = (away / gap).astype(np.float32, copy=False)
    return rank, lean


def _placed(rank: NDArray[np.int16], lean: Floats, largest: int) -> Placed:
    first, last = rank == 0, rank == largest
    toward = np.where(first | (~last & (lean >= 0)), 1, -1).astype(np.int8)
    inwards = lean * toward
    inner = np.clip(inwards * np.float32(2 * PLACES), 0, PLACES - 1)
    # At an end the weight may lie inside, up to half a step, or far outside.
    outer = np.clip((np.float32(0.5) - inwards) * np.float32(PLACES / 2), 0, PLACES - 1)
    place = np.where(first | last, outer + np.float32(PLACES), inner).astype(np.uint8)
    return rank, toward, place


def put_codes(piece: PieceWriter, codes: Bytes, nearest: Nearest, format: Format) -> float:
    """Write codes (rows, columns). Returns the share that plain rounding would not have chosen."""
    rank_of_code = np.argsort(order_of(format)).astype(np.int16)
    moved = (rank_of_code[codes] - nearest.rank) * nearest.toward
    classes = _column_classes(moved, nearest)
    piece.put(classes)
    context = (classes * np.uint8(2 * PLACES) + nearest.place).ravel()
    moved = moved.ravel()
    changed = moved != 0
    _put_plane(piece, changed, context)
    context, moved = context[changed], moved[changed]
    _put_plane(piece, moved < 0, context)
    distance = np.abs(moved)
    for step in range(1, SIZE_PLANES + 1):
        more = distance > step
        _put_plane(piece, more, context)
        context, distance = context[more], distance[more]
    piece.put((distance - (SIZE_PLANES + 1)).astype(np.uint8))
    return float(changed.mean())


def take_codes(piece: PieceReader, nearest: Nearest, format: Format, where: str) -> Bytes:
    """Undo put_codes. Raises: CheckpointError."""
    rows, columns = nearest.rank.shape
    classes = piece.take(columns) % CLASSES
    context = (classes * np.uint8(2 * PLACES) + nearest.place).ravel()
    changed = _take_plane(piece, context)
    context = context[changed]
    away = _take_plane(piece, context)
    distance = np.ones(len(context), np.int16)
    going = np.arange(len(context))
    for _ in range(SIZE_PLANES):
        going = going[_take_plane(piece, context[going])]
        distance[going] += 1
    distance[going] += piece.take(len(going))
    moved = np.zeros(rows * columns, np.int16)
    moved[changed] = np.where(away, -distance, distance)
    rank = nearest.rank + moved.reshape(rows, columns) * nearest.toward
    if rank.size and not 0 <= rank.min() <= rank.max() <= format.row.largest_code:
        raise CheckpointError(
            "the delta leads to a code that does not fit its width",
            where=where,
            expected=f"0 to {format.row.largest_code}",
            found=f"{rank.min()} to {rank.max()}",
            do="The file is damaged: copy or download it again",
        )
    codes: Bytes = order_of(format)[rank]
    return codes


def _column_classes(moved: NDArray[np.int16], nearest: Nearest) -> Bytes:
    """How far each column's codes are spread around its weights, (columns,)."""
    lean = (nearest.place % PLACES + np.float32(0.5)) / np.float32(2 * PLACES)
    lean[nearest.place >= PLACES] = 0
    spread = np.sqrt(np.mean(np.square(moved - lean), axis=0, dtype=np.float64))
    doublings = np.log2(np.maximum(spread, 1e-3) / ROUNDING_SPREAD)
    classes = np.clip(np.rint(CLASSES_PER_DOUBLING * doublings), 0, CLASSES - 1)
    return np.asarray(classes, np.uint8)


def _put_plane(piece: PieceWriter, bits: NDArray[np.bool_], context: Bytes) -> None:
    """Write one bit for each context, bits of like odds together."""
    if not len(bits):
        return
    levels = _levels(bits, context)
    piece.put(levels)
    level = levels[context]
    ordered = bits[np.argsort(level, kind="stable")]
    for part in np.split(ordered, np.cumsum(np.bincount(level))[:-1]):
        piece.put(np.packbits(part))


def _take_plane(piece: PieceReader, context: Bytes) -> NDArray[np.bool_]:
    """Undo _put_plane. Raises: CheckpointError."""
    bits = np.empty(len(context), np.bool_)
    if not len(context):
        return bits
    level = piece.take(CONTEXTS)[context]
    parts = [
        np.unpackbits(piece.take(-(-count // 8)), count=count)
        for count in np.bincount(level).tolist()
        if count
    ]
    bits[np.argsort(level, kind="stable")] = np.concatenate(parts)
    return bits


def _levels(bits: NDArray[np.bool_], context: Bytes) -> Bytes:
    """The level of each context, (CONTEXTS,): runs of like odds that cost least together.

    Contexts are sorted by their share of ones and cut where the bits saved pay for a level.
    """
    count = np.bincount(context, minlength=CONTEXTS)
    ones = np.bincount(context, bits, CONTEXTS)
    present = np.flatnonzero(count)
    order = present[np.argsort(ones[present] / count[present], kind="stable")]
    total = np.concatenate([[0], np.cumsum(count[order])])
    total_ones = np.concatenate([[0], np.cumsum(ones[order])])
    cheapest, start = np.zeros(len(order) + 1), np.zeros(len(order) + 1, np.intp)
    for end in range(1, len(order) + 1):
        cost = cheapest[:end] + CODE_TABLE_BITS
        cost += _entropy_bits(total[end] - total[:end], total_ones[end] - total_ones[:end])
        start[end] = np.argmin(cost)
        cheapest[end] = cost[start[end]]
    cuts, end = [], len(order)
    while end:
        end = int(start[end])
        cuts.append(end)
    levels = np.zeros(CONTEXTS, np.uint8)
    for level, begin in enumerate(reversed(cuts)):
        levels[order[begin:]] = level
    return levels


def _entropy_bits(count: NDArray[np.int64], ones: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits that so many independent draws with so many ones take."""
    share = np.clip(ones / count, 1e-12, 1 - 1e-12)
    bits: NDArray[np.float64] = -count * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return bits
