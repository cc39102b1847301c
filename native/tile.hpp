// Sizes and places of the tile layout, version 1; formats/layouts/tile.py draws it.
// In: bits, ZeroKind, group width and inputs of a matrix. Out: bytes, from a tile's or a block's
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

// Scales (fp16) of a block, and behind them its zero points (u8) or minima (fp16).
static constexpr int64_t scale_bytes() { return 2 * kTileRows; }

static constexpr int64_t header_bytes(int zero) {
  return scale_bytes() + (zero == kVariable ? kTileRows : zero == kMinimum ? 2 * kTileRows : 0);
}

// A block of this many inputs: the group's, or fewer at the end of a row.
static constexpr int64_t block_bytes(int bits, int zero, int64_t inputs) {
  return header_bytes(zero) + chunk_bytes(bits) * chunk_count(inputs);
}

static constexpr int64_t group_count(int64_t group_width, int64_t in_features) {
  return (in_features + group_width - 1) / group_width;
}

// Inputs of one group: group_width, fewer in the last.
static constexpr int64_t group_inputs(int64_t group_width, int64_t in_features, int64_t group) {
  const int64_t left = in_features - group * group_width;
  return left < group_width ? left : group_width;
}

// Where a group's block begins in its tile.
static constexpr int64_t block_offset(int bits, int zero, int64_t group_width, int64_t group) {
  return group * block_bytes(bits, zero, group_width);
}

static constexpr int64_t tile_bytes(int bits, int zero, int64_t group_width, int64_t in_features) {
  if (in_features <= 0) return 0;
  const int64_t last = group_count(group_width, in_features) - 1;
  return block_offset(bits, zero, group_width, last) +
         block_bytes(bits, zero, group_inputs(group_width, in_features, last));
}

// A matrix in tiles; packing and decoding are in tile_pack.cpp.
struct TileShape {
  int64_t rows, columns;  // out_features, in_features
  int64_t group_width;
  int bits;
  int zero;  // ZeroKind
};

// scale (rows, groups) holds fp16; offset (rows, groups) zero points u8, minima fp16 or nothing.
void pack_tiles(const TileShape& shape, const uint8_t* codes, const uint8_t* scale,
                const uint8_t* offset, uint8_t* tiles);
void unpack_tiles(const TileShape& shape, const uint8_t* tiles, uint8_t* codes, uint8_t* scale,
                  uint8_t* offset);
// table: null, or the 2^bits levels that codes stand for, whose zero is 0.
void decode_tiles(const TileShape& shape, const uint8_t* tiles, const int8_t* table,
                  float* weights);

static_assert(tile_bytes(3, kVariable, 128, 4096) == 32 * (32 + 16 + 4 * 192));
static_assert(tile_bytes(4, kFixed, 32, 100) == 3 * (32 + 256) + (32 + 256));

}  // namespace crumb
