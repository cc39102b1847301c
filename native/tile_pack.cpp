// Packs, unpacks and decodes the tile layout of formats/layouts/tile.py; tile.hpp has its sizes.
// In: row-major codes and the headers of blocks; or tiles. Out: the other, or f32 weights.
// Every loop runs over a slice: 64 bytes, 16 rows of 4 inputs, moved as words of 8 bytes.
#include <cstring>

#include "tile.hpp"

namespace crumb {
namespace {

// Some bits of a slice's codes, in every byte of one vector of the chunk.
struct Place {
  int slice, vector, low_in_vector, low_in_code, width;
};

// PLACES of formats/layouts/tile.py; a row of width 0 ends a list.
constexpr int kMaxPlaces = 14;
constexpr Place kPlaces[9][kMaxPlaces] = {
    {}, {},
    {{0, 0, 0, 0, 2}, {1, 0, 2, 0, 2}, {2, 0, 4, 0, 2}, {3, 0, 6, 0, 2},
     {4, 1, 0, 0, 2}, {5, 1, 2, 0, 2}, {6, 1, 4, 0, 2}, {7, 1, 6, 0, 2}},
    {{0, 0, 0, 0, 3}, {1, 0, 3, 0, 3}, {2, 1, 0, 0, 3}, {3, 1, 3, 0, 3}, {4, 2, 0, 0, 3},
     {5, 2, 3, 0, 3}, {6, 0, 6, 0, 2}, {6, 2, 6, 2, 1}, {7, 1, 6, 0, 2}, {7, 2, 7, 2, 1}},
    {{0, 0, 0, 0, 4}, {1, 0, 4, 0, 4}, {2, 1, 0, 0, 4}, {3, 1, 4, 0, 4},
     {4, 2, 0, 0, 4}, {5, 2, 4, 0, 4}, {6, 3, 0, 0, 4}, {7, 3, 4, 0, 4}},
    {{0, 0, 0, 0, 5}, {1, 1, 0, 0, 5}, {2, 2, 0, 0, 5}, {3, 3, 0, 0, 5},
     {4, 4, 0, 0, 5}, {5, 0, 5, 0, 3}, {5, 3, 5, 3, 2}, {6, 1, 5, 0, 3},
     {6, 4, 5, 3, 2}, {7, 2, 5, 0, 3}, {7, 3, 7, 3, 1}, {7, 4, 7, 4, 1}},
    {{0, 0, 0, 0, 6}, {1, 1, 0, 0, 6}, {2, 2, 0, 0, 6}, {3, 0, 6, 0, 2}, {3, 1, 6, 2, 2},
     {3, 2, 6, 4, 2}, {4, 3, 0, 0, 6}, {5, 4, 0, 0, 6}, {6, 5, 0, 0, 6}, {7, 3, 6, 0, 2},
     {7, 4, 6, 2, 2}, {7, 5, 6, 4, 2}},
    {},
    {{0, 0, 0, 0, 8}, {1, 1, 0, 0, 8}, {2, 2, 0, 0, 8}, {3, 3, 0, 0, 8},
     {4, 4, 0, 0, 8}, {5, 5, 0, 0, 8}, {6, 6, 0, 0, 8}, {7, 7, 0, 0, 8}},
};

constexpr int kWords = kVectorOfTile / 8;

struct Vector {
  uint64_t word[kWords];
};

// The lowest bits of every byte of a word.
constexpr uint64_t low_bits(int width) { return ((1u << width) - 1) * 0x0101010101010101u; }

void pack_chunk(const Vector* slices, uint8_t* out, int bits) {
  Vector vectors[8] = {};
  for (const Place* p = kPlaces[bits]; p < kPlaces[bits] + kMaxPlaces && p->width; ++p)
    for (int w = 0; w < kWords; ++w)
      vectors[p->vector].word[w] |= ((slices[p->slice].word[w] >> p->low_in_code) &
                                     low_bits(p->width)) << p->low_in_vector;
  std::memcpy(out, vectors, chunk_bytes(bits));
}

void unpack_chunk(const uint8_t* in, Vector* slices, int bits) {
  Vector vectors[8];
  std::memcpy(vectors, in, chunk_bytes(bits));
  std::memset(slices, 0, kSlices * sizeof(Vector));
  for (const Place* p = kPlaces[bits]; p < kPlaces[bits] + kMaxPlaces && p->width; ++p)
    for (int w = 0; w < kWords; ++w)
      slices[p->slice].word[w] |= ((vectors[p->vector].word[w] >> p->low_in_vector) &
                                   low_bits(p->width)) << p->low_in_code;
}

// One block of a tile.
struct Block {
  int64_t number, begin;  // bytes before it in the tile
  int64_t header_bytes, first_input, inputs;
};

// Calls visit(block) for each block of a tile.
template <class Visit>
void each_block(const BlockShape& shape, Visit visit) {
  const int64_t width = shape.block_width, count = block_count(width, shape.columns);
  const int64_t bytes = shape.header_bytes + chunk_bytes(shape.bits) * chunk_count(width);
  for (int64_t k = 0; k < count; ++k)
    visit(Block{k, k * bytes, k + 1 < count ? shape.header_bytes : shape.last_header_bytes, k * width,
                block_inputs(width, shape.columns, k)});
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows of a tile that the matrix has.
template <class Shape>
int64_t rows_of(const Shape& shape, int64_t tile) {
  return smaller(kTileRows, shape.rows - tile * kTileRows);
}

int64_t bytes_of(const BlockShape& shape) {
  int64_t bytes = 0;
  each_block(shape, [&](const Block& block) {
    bytes = block.begin + block.header_bytes + chunk_bytes(shape.bits) * chunk_count(block.inputs);
  });
  return bytes;
}

// fp16 to f32, exactly.
float widen(const uint8_t* at) {
  const uint32_t half = at[0] | uint32_t(at[1]) << 8;
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  uint32_t bits = (magnitude << 13) + (112u << 23);
  if (magnitude >= 0x7c00u) bits += 112u << 23;  // infinity or NaN
  float value;
  if (magnitude < 0x0400u) {
    value = float(magnitude) * 0x1p-24f;  // zero or subnormal
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

// One row of 32 codes, gathered from the chunk's slices.
void gather_row(const Vector* slices, int64_t row, uint8_t* codes) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(slices);
  for (int64_t s = 0; s < kSlices; ++s)
    std::memcpy(codes + kSliceInputs * s, bytes + kVectorOfTile * s + kSliceInputs * row,
                kSliceInputs);
}

// A group's sub-scale where several share bytes, `subs` at the first byte of a row.
int shared_sub_scale(int kind, const uint8_t* subs, int64_t number) {
  const int64_t first = kind == kSubPairs ? 0 : number / 4 * 3, k = kind == kSubPairs ? number : number % 4;
  const int digit = subs[(first + k / 2) * kTileRows] >> 4 * (k % 2) & 15;
  if (kind == kSubPairs) return digit - (digit & 8) * 2;
  const int whole = digit | (subs[(first + 2) * kTileRows] >> 2 * k & 3) << 4;
  return whole - (whole & 32) * 2;
}

// What a block's header says of one of its groups.
struct Group {
  float scale[kTileRows], offset[kTileRows];
};

Group group_of(const TileShape& shape, const uint8_t* block, int64_t number, const int8_t* table) {
  const float fixed = table ? 0.0f : float(1 << (shape.bits - 1));
  const uint8_t* subs = block + own_header_bytes(shape.zero);
  const uint8_t* sub = subs + number * kTileRows;
  Group group;
  for (int64_t row = 0; row < kTileRows; ++row) {
    const uint8_t* offset = block + scale_bytes();
    float &scale = group.scale[row], &zero = group.offset[row];
    scale = widen(block + 2 * row);
    zero = shape.zero == kVariable  ? float(offset[row])
           : shape.zero == kMinimum ? widen(offset + 2 * row)
                                    : fixed;
    if (shape.sub == kSubBytes) scale *= float(int8_t(sub[row]));
    if (shape.sub == kSubDigits) scale *= float(sub[row] & 15);
    if (shape.sub >= kSubPairs) scale *= float(shared_sub_scale(shape.sub, subs + row, number));
    if (shape.sub != kNoSub && shape.zero == kMinimum)
      zero = -(zero * float(shape.sub == kSubDigits ? sub[row] >> 4
                                                    : sub[super_groups(shape) * kTileRows + row]));
  }
  return group;
}

// Inputs first to first + part of a chunk: `count` of them of each row go to `weights`.
void decode_part(const TileShape& shape, const Vector* slices, const Group& group, int64_t first,
                 int64_t part, const int8_t* table, float* weights, int64_t rows, int64_t count) {
  for (int64_t row = 0; row < rows; ++row) {
    uint8_t codes[kChunkInputs];
    gather_row(slices, row, codes);
    float level[kChunkInputs];
    for (int64_t j = 0; j < part; ++j)
      level[j] = table ? float(table[codes[first + j]]) : float(codes[first + j]);
    const float s = group.scale[row], o = group.offset[row];
    if (shape.zero == kMinimum)
      for (int64_t j = 0; j < part; ++j) level[j] = level[j] * s + o;
    else
      for (int64_t j = 0; j < part; ++j) level[j] = (level[j] - o) * s;
    std::memcpy(weights + row * shape.columns, level, count * sizeof(float));
  }
}

}  // namespace

void pack_tiles(const BlockShape& shape, const uint8_t* codes, const uint8_t* headers,
                uint8_t* tiles) {
  const int64_t stride = bytes_of(shape), blocks = block_count(shape.block_width, shape.columns);
  std::memset(tiles, 0, tile_count(shape.rows) * stride);
  for (int64_t tile = 0; tile < tile_count(shape.rows); ++tile)
    each_block(shape, [&](const Block& block) {
      const int64_t first = block.first_input, inputs = block.inputs;
      uint8_t* to = tiles + tile * stride + block.begin;
      std::memcpy(to, headers + (tile * blocks + block.number) * shape.header_bytes,
                  block.header_bytes);
      to += block.header_bytes;
      for (int64_t chunk = 0; chunk < chunk_count(inputs); ++chunk) {
        Vector slices[kSlices] = {};
        uint8_t* bytes = reinterpret_cast<uint8_t*>(slices);
        const int64_t count = smaller(kChunkInputs, inputs - chunk * kChunkInputs);
        for (int64_t row = 0; row < rows_of(shape, tile); ++row) {
          uint8_t line[kChunkInputs] = {};
          std::memcpy(line, codes + (tile * kTileRows + row) * shape.columns + first +
                                chunk * kChunkInputs, count);
          for (int64_t s = 0; s < kSlices; ++s)
            std::memcpy(bytes + kVectorOfTile * s + kSliceInputs * row, line + kSliceInputs * s,
                        kSliceInputs);
        }
        pack_chunk(slices, to + chunk * chunk_bytes(shape.bits), shape.bits);
      }
    });
}

void unpack_tiles(const BlockShape& shape, const uint8_t* tiles, uint8_t* codes,
                  uint8_t* headers) {
  const int64_t stride = bytes_of(shape), blocks = block_count(shape.block_width, shape.columns);
  for (int64_t tile = 0; tile < tile_count(shape.rows); ++tile)
    each_block(shape, [&](const Block& block) {
      const int64_t first = block.first_input, inputs = block.inputs;
      const uint8_t* from = tiles + tile * stride + block.begin;
      uint8_t* header = headers + (tile * blocks + block.number) * shape.header_bytes;
      std::memcpy(header, from, block.header_bytes);
      std::memset(header + block.header_bytes, 0, shape.header_bytes - block.header_bytes);
      from += block.header_bytes;
      for (int64_t chunk = 0; chunk < chunk_count(inputs); ++chunk) {
        Vector slices[kSlices];
        unpack_chunk(from + chunk * chunk_bytes(shape.bits), slices, shape.bits);
        const int64_t count = smaller(kChunkInputs, inputs - chunk * kChunkInputs);
        for (int64_t row = 0; row < rows_of(shape, tile); ++row) {
          uint8_t line[kChunkInputs];
          gather_row(slices, row, line);
          std::memcpy(codes + (tile * kTileRows + row) * shape.columns + first +
                          chunk * kChunkInputs, line, count);
        }
      }
    });
}

void decode_tiles(const TileShape& shape, const uint8_t* tiles, const int8_t* table,
                  float* weights) {
  const int64_t width = block_width(shape), last = block_count(width, shape.columns) - 1;
  const BlockShape blocks{shape.rows, shape.columns, width, header_bytes(shape),
                          header_bytes(shape, block_inputs(width, shape.columns, last)), shape.bits};
  const int64_t stride = bytes_of(blocks);
  // Inputs of a chunk that share a group: 16 where groups of a super-block are so small.
  const int64_t part = shape.sub == kNoSub ? kChunkInputs : smaller(kChunkInputs, shape.group_width);
  for (int64_t tile = 0; tile < tile_count(shape.rows); ++tile)
    each_block(blocks, [&](const Block& of) {
      const int64_t first = of.first_input, inputs = of.inputs;
      const uint8_t* block = tiles + tile * stride + of.begin;
      Group group = group_of(shape, block, 0, table);
      for (int64_t chunk = 0; chunk < chunk_count(inputs); ++chunk) {
        Vector slices[kSlices];
        unpack_chunk(block + of.header_bytes + chunk * chunk_bytes(shape.bits), slices, shape.bits);
        for (int64_t k = 0; k < kChunkInputs; k += part) {
          const int64_t input = chunk * kChunkInputs + k;
          if (shape.sub != kNoSub)
            group = group_of(shape, block, input / shape.group_width, table);
          decode_part(shape, slices, group, k, part, table,
                      weights + tile * kTileRows * shape.columns + first + input,
                      rows_of(shape, tile), smaller(part, inputs - input));
        }
      }
    });
}

}  // namespace crumb
