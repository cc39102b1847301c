// A quantized matrix as the check sees it: numbers row by row, and their bytes in tiles.
// In: a format and sizes; the numbers are random, with rows of extremes. Out: TileMatrix for the
// kernels, and exact values for the expected results. The bytes are laid out by the check itself.
#pragma once

#include "check.hpp"

namespace crumb::check {

double from_half(uint16_t half);
uint16_t to_half(double value);  // nearest, ties to even

struct Format {
  int bits, zero;  // ZeroKind
  bool table;
  int sub = kNoSub;           // SubKind
  int64_t group_width = 0;    // of a super-block; others have any
  std::string name() const;
};
// Every format that has a kernel.
std::vector<Format> all_formats();
// Those of these that the format has: its own, or whole super-blocks where no other may be.
std::vector<int64_t> widths_of(const Format& format);
std::vector<int> columns_of(const Format& format, const std::vector<int>& columns);

struct Matrix {
  Format format;
  int64_t rows, columns, group_width, groups, blocks;  // a block has an fp16 scale
  std::vector<int> level;                  // (rows, columns) code, or the table's value
  std::vector<uint16_t> scale, minimum;    // (rows, blocks) halves
  std::vector<int> sub_scale, sub_minimum;  // (rows, groups), of super-blocks
  std::vector<int> zero_point;             // (rows, groups)
  Memory<uint8_t> tiles, table;
  int64_t tile_bytes;

  int64_t group_of(int64_t column) const { return column / group_width; }
  int64_t block_of(int64_t group) const { return format.sub ? group * group_width / 256 : group; }
  int64_t tile_count() const { return (rows + 15) / 16; }
  double scale_of(int64_t row, int64_t group) const {
    const double own = from_half(scale[row * blocks + block_of(group)]);
    return own * (format.sub ? sub_scale[row * groups + group] : 1);
  }
  double minimum_of(int64_t row, int64_t group) const {
    const double own = from_half(minimum[row * blocks + block_of(group)]);
    return format.sub ? -(own * sub_minimum[row * groups + group]) : own;
  }
  int zero_of(int64_t row, int64_t group) const { return zero_point[row * groups + group]; }
  // As formats/grid.py rounds it: to f32 after each operation.
  float weight(int64_t row, int64_t column) const;
  TileMatrix tile_matrix() const;
  std::string name() const;
};

// group_width: 32, 64, 128, or the columns or more. exact: scales are 1, minima whole numbers.
Matrix random_matrix(const Format& format, int64_t rows, int64_t columns, int64_t group_width,
                     bool exact, Random& random);

}  // namespace crumb::check
