// Sizes and places of the tile layout, version 1; formats/layouts/tile.py draws it.
// In: bits, kinds, group width and inputs of a matrix. Out: bytes, from a tile's or a block's
// begin. Internal linkage and no headers of the library: files of any instruction set may include.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace crumb {

constexpr int64_t kTileRows = 16;    // consecutive output rows of a tile
constexpr int64_t kChunkInputs = 32;  // inputs of a chunk: 8 slices of 4
constexpr int64_t kSlices = 8;
constexpr int64_t kSliceInputs = 4;
constexpr int64_t kVectorOfTile = 64;  // bytes: byte 4 * row + input of the slice

static constexpr int64_t tile_count(int64_t out_features) {
  return (out_features + kTileRows - 1) / kTileRows;
}

static constexpr int64_t chunk_bytes(int bits) { return kVectorOfTile * bits; }

static constexpr int64_t chunk_count(int64_t inputs) {
  return (inputs + kChunkInputs - 1) / kChunkInputs;
}

constexpr int64_t kSuperInputs = 256;  // inputs of a super-block

// Scales (fp16) of a block, and behind them its zero points (u8) or minima (fp16).
static constexpr int64_t scale_bytes() { return 2 * kTileRows; }

static constexpr int64_t own_header_bytes(int zero) {
  return scale_bytes() + (zero == kVariable ? kTileRows : zero == kMinimum ? 2 * kTileRows : 0);
}

// The functions below take anything with bits, zero, sub, group_width and columns.

// Groups of a super-block, 0 where each group is a block of its own.
template <class M>
static constexpr int64_t super_groups(const M& m) {
  return m.sub == kNoSub ? 0 : kSuperInputs / m.group_width;
}

// Bytes for each row that multiply the scales, and behind those the minima, of so many groups.
static constexpr int64_t sub_values(int sub, int zero, int64_t groups) {
  if (sub == kSubPairs) return (groups + 1) / 2;
  if (sub == kSubQuads) return (groups + 3) / 4 * 3;
  return sub == kSubBytes && zero == kMinimum ? 2 * groups : groups;
}

// What a whole block holds before its codes.
template <class M>
static constexpr int64_t header_bytes(const M& m) {
  return own_header_bytes(m.zero) + kTileRows * sub_values(m.sub, m.zero, super_groups(m));
}

// The same of a block of this many inputs: some super-blocks may be smaller at the end of a row.
template <class M>
static constexpr int64_t header_bytes(const M& m, int64_t inputs) {
  if (m.sub < kSubPairs || inputs >= kSuperInputs) return header_bytes(m);
  const int64_t groups = (inputs + m.group_width - 1) / m.group_width;
  return own_header_bytes(m.zero) + kTileRows * sub_values(m.sub, m.zero, groups);
}

// A block of this many inputs: the group's or super-block's, or fewer at the end of a row.
template <class M>
static constexpr int64_t block_bytes(const M& m, int64_t inputs) {
  return header_bytes(m, inputs) + chunk_bytes(m.bits) * chunk_count(inputs);
}

template <class M>
static constexpr int64_t block_width(const M& m) {
  return m.sub == kNoSub ? m.group_width : kSuperInputs;
}

static constexpr int64_t block_count(int64_t width, int64_t columns) {
  return (columns + width - 1) / width;
}

// Inputs of one block: its width, fewer in the last.
static constexpr int64_t block_inputs(int64_t width, int64_t columns, int64_t block) {
  const int64_t left = columns - block * width;
  return left < width ? left : width;
}

// Where a block begins in its tile.
template <class M>
static constexpr int64_t block_offset(const M& m, int64_t block) {
  return block * block_bytes(m, block_width(m));
}

template <class M>
static constexpr int64_t tile_bytes(const M& m) {
  if (m.columns <= 0) return 0;
  const int64_t width = block_width(m), last = block_count(width, m.columns) - 1;
  return block_offset(m, last) + block_bytes(m, block_inputs(width, m.columns, last));
}

// A matrix in tiles; packing and decoding are in tile_pack.cpp.
struct TileShape {
  int64_t rows, columns;  // out_features, in_features
  int64_t group_width;
  int bits;
  int zero;  // ZeroKind
  int sub;   // SubKind
};

// Blocks whose headers are just bytes; the last block's may be fewer.
struct BlockShape {
  int64_t rows, columns, block_width, header_bytes, last_header_bytes;
  int bits;
};

// headers: (tiles, blocks, header_bytes), of which the last block has the first last_header_bytes.
void pack_tiles(const BlockShape& shape, const uint8_t* codes, const uint8_t* headers,
                uint8_t* tiles);
void unpack_tiles(const BlockShape& shape, const uint8_t* tiles, uint8_t* codes,
                  uint8_t* headers);
// table: null, or the 2^bits levels that codes stand for, whose zero is 0.
void decode_tiles(const TileShape& shape, const uint8_t* tiles, const int8_t* table,
                  float* weights);

static_assert(tile_bytes(TileShape{1, 4096, 128, 3, kVariable, kNoSub}) == 32 * (32 + 16 + 4 * 192));
static_assert(tile_bytes(TileShape{1, 100, 32, 4, kFixed, kNoSub}) == 3 * (32 + 256) + (32 + 256));
static_assert(tile_bytes(TileShape{1, 512, 16, 2, kMinimum, kSubDigits}) ==
              2 * (32 + 32 + 16 * 16 + 8 * 128));
static_assert(tile_bytes(TileShape{1, 512, 32, 5, kMinimum, kSubBytes}) ==
              2 * (32 + 32 + 2 * 8 * 16 + 8 * 320));
static_assert(tile_bytes(TileShape{1, 576, 32, 3, kFixed, kSubPairs}) ==
              2 * (32 + 4 * 16 + 8 * 192) + (32 + 16 + 2 * 192));
static_assert(tile_bytes(TileShape{1, 576, 32, 4, kFixed, kSubQuads}) ==
              2 * (32 + 6 * 16 + 8 * 256) + (32 + 3 * 16 + 2 * 256));

}  // namespace crumb
