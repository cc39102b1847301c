"""The tile layout, version 1: sizes, places of the bits, and the reference packer.

In: codes (out_features, in_features) and group parameters. Out: tiles (tiles, tile_bytes), uint8.
A tile is 16 rows over all inputs: one block a group or super-block, in order of the inputs. A block
is a header, `fields` of 16 rows each, then chunks of 32 inputs, 64 * bits bytes each. What pads
rows to 16 and a block to chunks is 0. Refuses codes that do not fit their width.
`kernels.tile` is the fast twin, native/tile.hpp has the same sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.formats.bit_stream import check_codes
from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.grid import GroupParameters

LAYOUT = "tile"
LAYOUT_VERSION = 1

TILE_ROWS = 16
SLICES = 8
SLICE_INPUTS = 4
CHUNK_INPUTS = SLICES * SLICE_INPUTS
VECTOR_BYTES = TILE_ROWS * SLICE_INPUTS
"""A slice is 16 rows of 4 inputs, a byte each: row r, input j of the slice is byte 4 * r + j."""

HEADERS: dict[ZeroKind, dict[str, np.dtype[Any]]] = {
    ZeroKind.FIXED: {"scale": np.dtype("<f2")},
    ZeroKind.VARIABLE: {"scale": np.dtype("<f2"), "zero_point": np.dtype("u1")},
    ZeroKind.MINIMUM: {"scale": np.dtype("<f2"), "minimum": np.dtype("<f2")},
}
"""What a header begins with: these fields of GroupParameters, one value for each row."""

SUB_HEADERS: dict[ZeroKind, dict[str, np.dtype[Any]]] = {
    ZeroKind.FIXED: {"sub_scale": np.dtype("i1")},
    ZeroKind.MINIMUM: {"sub_scale": np.dtype("i1"), "sub_minimum": np.dtype("u1")},
}
"""What a super-block's header goes on with: one value for each of its groups and each row.

Where both fit into 4 bits they share a byte, the minimum in its high digit. Where the last
super-block of a row may be smaller, its header ends behind its groups; sub-scales of 4 bits there
share a byte with those of the next group, in its high digit, and of 6 bits four share three bytes:
two of such digits, then one with the two bits above each.
"""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class BitPlace:
    """Where some bits of a slice's codes lie: in every byte of one vector of the chunk."""

    vector: int
    low_in_vector: int  # lowest bit within the byte
    low_in_code: int  # lowest bit within the code
    width: int  # bits


def _whole(bits: int, *places: tuple[int, int]) -> list[tuple[BitPlace, ...]]:
    """Slices whose codes lie in one piece, at (vector, lowest bit)."""
    return [(BitPlace(vector, low, 0, bits),) for vector, low in places]


def _pieces(*pieces: tuple[int, int, int]) -> tuple[BitPlace, ...]:
    """One slice in pieces (vector, lowest bit, width), its low bits first."""
    low_in_code = [sum(piece[2] for piece in pieces[:place]) for place in range(len(pieces))]
    return tuple(
        BitPlace(vector, low, start, width)
        for (vector, low, width), start in zip(pieces, low_in_code, strict=True)
    )


PLACES: dict[int, list[tuple[BitPlace, ...]]] = {
    2: _whole(2, *((number // 4, 2 * (number % 4)) for number in range(SLICES))),
    3: [
        *_whole(3, (0, 0), (0, 3), (1, 0), (1, 3), (2, 0), (2, 3)),
        _pieces((0, 6, 2), (2, 6, 1)),
        _pieces((1, 6, 2), (2, 7, 1)),
    ],
    4: _whole(4, *((number // 2, 4 * (number % 2)) for number in range(SLICES))),
    5: [
        *_whole(5, (0, 0), (1, 0), (2, 0), (3, 0), (4, 0)),
        _pieces((0, 5, 3), (3, 5, 2)),
        _pieces((1, 5, 3), (4, 5, 2)),
        _pieces((2, 5, 3), (3, 7, 1), (4, 7, 1)),
    ],
    6: [
        *_whole(6, (0, 0), (1, 0), (2, 0)),
        _pieces((0, 6, 2), (1, 6, 2), (2, 6, 2)),
        *_whole(6, (3, 0), (4, 0), (5, 0)),
        _pieces((3, 6, 2), (4, 6, 2), (5, 6, 2)),
    ],
    8: _whole(8, *((number, 0) for number in range(SLICES))),
}
"""Bits -> for each of a chunk's 8 slices, where its codes lie. native/tile_pack.cpp has it too."""


def tile_count(out_features: int) -> int:
    """Tiles of so many rows."""
    return -(-out_features // TILE_ROWS)


def tiles_of_rows(begin: int, end: int) -> slice:
    """The tiles that hold rows begin to end."""
    return slice(begin // TILE_ROWS, tile_count(end))


def chunk_count(inputs: int) -> int:
    """Chunks of a group of so many inputs."""
    return -(-inputs // CHUNK_INPUTS)


@dataclass(frozen=True)
class Field:
    """One array of a header: for each of its values in turn, 16 rows."""

    name: str  # of GroupParameters
    dtype: np.dtype[Any]
    values: int  # in a header: 1, or the groups of a super-block

    @property
    def size_bytes(self) -> int:
        return TILE_ROWS * self.values * self.dtype.itemsize


class Sharing(Enum):
    """What shares a byte of a super-block's header."""

    NOTHING = "bytes"
    MINIMUM = "digits"  # a group's sub_scale and sub_minimum
    PAIRS = "pairs"  # the sub_scale of a group and of the next
    QUADS = "quads"  # those of four groups share three bytes


def sharing(format: Format) -> Sharing:
    """What shares a byte in a format of super-blocks."""
    block = format.row.super_block
    if block is not None and block.ragged:
        return Sharing.PAIRS if block.sub_bits == 4 else Sharing.QUADS
    shares = block is not None and block.sub_bits == 4
    return Sharing.MINIMUM if shares else Sharing.NOTHING


def fields(format: Format) -> list[Field]:
    """What a header holds, in order; a shared byte is the field of its low digit."""
    return _fields(format, format.row.super_block.width if format.row.super_block else 0)


def _fields(format: Format, inputs: int) -> list[Field]:
    fields = [Field(name, dtype, 1) for name, dtype in HEADERS[format.zero].items()]
    if format.row.super_block is not None:
        groups, shared = -(-inputs // format.group_size), sharing(format)
        sub_headers = list(SUB_HEADERS[format.zero].items())
        sub_headers = sub_headers[:1] if shared is Sharing.MINIMUM else sub_headers
        values = {Sharing.PAIRS: -(-groups // 2), Sharing.QUADS: 3 * -(-groups // 4)}
        groups = values.get(shared, groups)
        fields += [Field(name, dtype, groups) for name, dtype in sub_headers]
    return fields


def header_bytes(format: Format, inputs: int | None = None) -> int:
    """Size of what a block of so many inputs holds before its codes; None: of a whole one."""
    each = fields(format) if inputs is None else _fields(format, inputs)
    return sum(field.size_bytes for field in each)


def headers(parameters: GroupParameters, format: Format) -> Bytes:
    """Every block's header as a whole block has it, (tiles, blocks, header_bytes)."""
    arrays: dict[str, NDArray[Any]] = vars(parameters)
    shared = sharing(format)
    if shared is not Sharing.NOTHING:
        assert parameters.sub_scale is not None, "every super-block has sub-scales"
        low = parameters.sub_scale.view(np.uint8)
        if shared is Sharing.MINIMUM:
            assert parameters.sub_minimum is not None, "one with a minimum has both"
            arrays = arrays | {"sub_scale": low | parameters.sub_minimum << 4}
        else:
            arrays = arrays | {"sub_scale": _shared_bytes(low, shared).view(np.int8)}
    rows, count = parameters.scale.shape
    tiles = tile_count(rows)
    headers = np.zeros((tiles, count, header_bytes(format)), np.uint8)
    at = 0
    for field in fields(format):
        values = np.zeros((tiles * TILE_ROWS, count * field.values), field.dtype)
        values[:rows] = arrays[field.name]
        each = values.reshape(tiles, TILE_ROWS, count, field.values).transpose(0, 2, 3, 1)
        end = at + field.size_bytes
        raw = np.ascontiguousarray(each).view(np.uint8)
        headers[:, :, at:end] = raw.reshape(tiles, count, field.size_bytes)
        at = end
    return headers


def parameters_of(headers: Bytes, format: Format, out_features: int) -> GroupParameters:
    """Undo `headers`."""
    tiles, count, _ = headers.shape
    parts: dict[str, NDArray[Any]] = {}
    at = 0
    for field in fields(format):
        end = at + field.size_bytes
        part = np.ascontiguousarray(headers[:, :, at:end]).view(field.dtype)
        each = part.reshape(tiles, count, field.values, TILE_ROWS).transpose(0, 3, 1, 2)
        parts[field.name] = each.reshape(tiles * TILE_ROWS, count * field.values)[:out_features]
        at = end
    shared = sharing(format)
    if shared is Sharing.MINIMUM:
        both = parts["sub_scale"].view(np.uint8)
        parts |= {"sub_scale": (both & 15).view(np.int8), "sub_minimum": both >> 4}
    if shared in (Sharing.PAIRS, Sharing.QUADS):
        parts["sub_scale"] = _sub_scales(parts["sub_scale"].view(np.uint8), shared)
    return GroupParameters(**parts)


def _shared_bytes(sub_scales: Bytes, shared: Sharing) -> Bytes:
    """Bytes of sub-scales (rows, groups of whole super-blocks)."""
    pairs: Bytes = (sub_scales[:, ::2] & 15 | sub_scales[:, 1::2] << 4).astype(np.uint8)
    if shared is Sharing.PAIRS:
        return pairs
    each = [(sub_scales[:, k::4] >> 4 & 3) << 2 * k for k in range(4)]
    tops = each[0] | each[1] | each[2] | each[3]
    return np.stack([pairs[:, ::2], pairs[:, 1::2], tops], axis=2).reshape(len(pairs), -1)


def _sub_scales(packed: Bytes, shared: Sharing) -> NDArray[np.int8]:
    """Undo _shared_bytes."""
    rows, bits = len(packed), 4 if shared is Sharing.PAIRS else 6
    if shared is Sharing.PAIRS:
        whole = np.stack([packed & 15, packed >> 4], axis=2)
    else:
        four = packed.reshape(rows, -1, 3)
        digits = [four[..., k // 2] >> 4 * (k % 2) & 15 for k in range(4)]
        whole = np.stack([digits[k] | (four[..., 2] >> 2 * k & 3) << 4 for k in range(4)], axis=2)
    up = 8 - bits
    return ((whole << up).view(np.int8) >> up).reshape(rows, -1)


def block_bytes(format: Format, inputs: int) -> int:
    """Size of a block whose group has so many inputs."""
    return header_bytes(format, inputs) + VECTOR_BYTES * format.bits * chunk_count(inputs)


def tile_bytes(format: Format, in_features: int) -> int:
    """Size of a tile over so many inputs."""
    width, before = format.block_width(in_features), format.blocks(in_features) - 1
    return before * block_bytes(format, width) + block_bytes(format, in_features - before * width)


@dataclass(frozen=True)
class Block:
    """One group's or super-block's part of a tile."""

    number: int
    offset_bytes: int  # in the tile
    first_input: int
    inputs: int  # the block's width, or less in the last


def blocks(format: Format, in_features: int) -> list[Block]:
    """The blocks of a tile in their order."""
    width = format.block_width(in_features)
    whole = block_bytes(format, width)
    return [
        Block(number, number * whole, number * width, min(width, in_features - number * width))
        for number in range(format.blocks(in_features))
    ]


def pack_reference(codes: Bytes, parameters: GroupParameters, format: Format) -> Bytes:
    """Tiles of a matrix.

    Shapes: codes (out_features, in_features) -> (tiles, tile_bytes). Raises: UsageError for a code
    over 2^bits - 1.
    """
    check_codes(codes, format.bits)
    out_features, in_features = codes.shape
    count = tile_count(out_features)
    tiles = np.zeros((count, tile_bytes(format, in_features)), np.uint8)
    before = headers(parameters, format)
    for block in blocks(format, in_features):
        size = header_bytes(format, block.inputs)
        at = block.offset_bytes + size
        tiles[:, block.offset_bytes : at] = before[:, block.number, :size]
        part = codes[:, block.first_input : block.first_input + block.inputs]
        vectors = _pack_slices(_slices(_rows_of_tiles(part, count)), format.bits)
        tiles[:, at : at + vectors.shape[1]] = vectors
    return tiles


def unpack_reference(
    tiles: Bytes, format: Format, out_features: int, in_features: int
) -> tuple[Bytes, GroupParameters]:
    """Undo pack_reference. Shapes: (tiles, tile_bytes) -> codes (out_features, in_features)."""
    codes = np.empty((len(tiles) * TILE_ROWS, in_features), np.uint8)
    before = np.zeros((len(tiles), format.blocks(in_features), header_bytes(format)), np.uint8)
    for block in blocks(format, in_features):
        size = header_bytes(format, block.inputs)
        at = block.offset_bytes + size
        before[:, block.number, :size] = tiles[:, block.offset_bytes : at]
        vectors = tiles[:, at : block.offset_bytes + block_bytes(format, block.inputs)]
        inputs = _rows_of_slices(_unpack_slices(vectors, format.bits))
        end = block.first_input + block.inputs
        codes[:, block.first_input : end] = inputs[:, : block.inputs]
    return codes[:out_features], parameters_of(before, format, out_features)


def _rows_of_tiles(part: NDArray[Any], count: int) -> NDArray[Any]:
    """Some columns with rows of 0 behind, (count, TILE_ROWS, columns)."""
    padded = np.zeros((count * TILE_ROWS, part.shape[1]), part.dtype)
    padded[: len(part)] = part
    return padded.reshape(count, TILE_ROWS, part.shape[1])


def _slices(rows: Bytes) -> Bytes:
    """Codes of whole tiles as slices, (tiles, chunks, SLICES, VECTOR_BYTES)."""
    count, _, inputs = rows.shape
    chunks = chunk_count(inputs)
    padded = np.zeros((count, TILE_ROWS, chunks * CHUNK_INPUTS), np.uint8)
    padded[..., :inputs] = rows
    each = padded.reshape(count, TILE_ROWS, chunks, SLICES, SLICE_INPUTS)
    return each.transpose(0, 2, 3, 1, 4).reshape(count, chunks, SLICES, VECTOR_BYTES)


def _rows_of_slices(slices: Bytes) -> Bytes:
    """Undo _slices: (rows, inputs with their padding)."""
    count, chunks = slices.shape[:2]
    each = slices.reshape(count, chunks, SLICES, TILE_ROWS, SLICE_INPUTS)
    return each.transpose(0, 3, 1, 2, 4).reshape(count * TILE_ROWS, chunks * CHUNK_INPUTS)


def _pack_slices(slices: Bytes, bits: int) -> Bytes:
    """Vectors of each tile, (tiles, chunks * bits * VECTOR_BYTES)."""
    count, chunks = slices.shape[:2]
    vectors = np.zeros((count, chunks, bits, VECTOR_BYTES), np.uint8)
    for slice_in_chunk, places in enumerate(PLACES[bits]):
        for place in places:
            piece = slices[:, :, slice_in_chunk] >> place.low_in_code & (1 << place.width) - 1
            vectors[:, :, place.vector] |= piece << place.low_in_vector
    return vectors.reshape(count, chunks * bits * VECTOR_BYTES)


def _unpack_slices(vectors: Bytes, bits: int) -> Bytes:
    """Undo _pack_slices: (tiles, chunks, SLICES, VECTOR_BYTES)."""
    count, chunks = len(vectors), vectors.shape[1] // (bits * VECTOR_BYTES)
    each = vectors.reshape(count, chunks, bits, VECTOR_BYTES)
    slices = np.zeros((count, chunks, SLICES, VECTOR_BYTES), np.uint8)
    for slice_in_chunk, places in enumerate(PLACES[bits]):
        for place in places:
            piece = each[:, :, place.vector] >> place.low_in_vector & (1 << place.width) - 1
            slices[:, :, slice_in_chunk] |= piece << place.low_in_code
    return slices


def diagram(bits: int) -> str:
    """Which slice of a chunk each bit belongs to: one byte of each vector, highest bit at the left.

    A slice that appears in several vectors has its lower bits in the earlier ones.
    """
    owners = [[""] * 8 for _ in range(bits)]
    for slice_in_chunk, places in enumerate(PLACES[bits]):
        for place in places:
            for bit in range(place.low_in_vector, place.low_in_vector + place.width):
                owners[place.vector][7 - bit] = str(slice_in_chunk)
    return " ".join("".join(byte) for byte in owners)
