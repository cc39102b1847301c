// Random quantized matrices and their bytes, written from docs/formats.md's drawing of a chunk.
#include "matrix.hpp"

#include <algorithm>

namespace crumb::check {
namespace {

// One code into its chunk. byte: 4 * row + input of the slice.
void put(uint8_t* chunk, int bits, int slice, int byte, int code) {
  const auto add = [&](int vector, int shift, int value) {
    chunk[64 * vector + byte] |= uint8_t(value << shift);
  };
  const int s = slice, half = 3 * (s / 4);
  if (bits == 8) add(s, 0, code);
  if (bits == 4) add(s / 2, 4 * (s % 2), code);
  if (bits == 2) add(s / 4, 2 * (s % 4), code);
  if (bits == 3 && s < 6) add(s / 2, 3 * (s % 2), code);
  if (bits == 3 && s >= 6) add(s - 6, 6, code & 3), add(2, s, code >> 2);
  if (bits == 6 && s % 4 < 3) add(half + s % 4, 0, code);
  if (bits == 6 && s % 4 == 3)
    add(half, 6, code & 3), add(half + 1, 6, code >> 2 & 3), add(half + 2, 6, code >> 4);
  if (bits == 5 && s < 5) add(s, 0, code);
  if (bits == 5 && s >= 5) add(s - 5, 5, code & 7);
  if (bits == 5 && (s == 5 || s == 6)) add(s - 2, 5, code >> 3);
  if (bits == 5 && s == 7) add(3, 7, code >> 3 & 1), add(4, 7, code >> 4);
}

// What lies before a block's codes: 16 rows each of halves, zero points and super-block's bytes.
int64_t header_size(const Format& format, int64_t inputs) {
  const int64_t halves = format.zero == kMinimum ? 2 : 1, points = format.zero == kVariable ? 1 : 0;
  int64_t sub = 0;
  if (format.sub) sub = (inputs + format.group_width - 1) / format.group_width;
  if (format.sub == kSubBytes && format.zero == kMinimum) sub *= 2;
  if (format.sub == kSubPairs) sub = (sub + 1) / 2;
  if (format.sub == kSubQuads) sub = (sub + 3) / 4 * 3;
  return 16 * (2 * halves + points + sub);
}

void write_half(uint8_t* at, uint16_t half) {
  at[0] = uint8_t(half), at[1] = uint8_t(half >> 8);
}

int64_t block_width(const Matrix& m) { return m.format.sub ? 256 : m.group_width; }

// The bytes of a super-block's groups, for one row.
void write_sub(const Matrix& m, int64_t row, int64_t block, uint8_t* at) {
  const int64_t whole = 256 / m.group_width, count = std::min(whole, m.groups - block * whole);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t of = row * m.groups + block * whole + k;
    if (m.format.sub == kSubPairs) {
      at[16 * (k / 2)] |= uint8_t((m.sub_scale[of] & 15) << (k % 2 ? 4 : 0));
      continue;
    }
    if (m.format.sub == kSubQuads) {
      uint8_t* four = at + 48 * (k / 4);
      four[16 * (k % 4 / 2)] |= uint8_t((m.sub_scale[of] & 15) << (k % 2 ? 4 : 0));
      four[32] |= uint8_t((m.sub_scale[of] >> 4 & 3) << 2 * (k % 4));
      continue;
    }
    if (m.format.sub == kSubDigits) {
      at[16 * k] = uint8_t(m.sub_scale[of] + 16 * m.sub_minimum[of]);
      continue;
    }
    at[16 * k] = uint8_t(m.sub_scale[of]);
    if (m.format.zero == kMinimum) at[16 * (count + k)] = uint8_t(m.sub_minimum[of]);
  }
}

// codes: (rows, columns).
void lay_out(Matrix& m, const std::vector<int>& codes) {
  std::memset(m.tiles.data(), 0, m.tiles.count());
  for (int64_t row = 0; row < m.rows; ++row) {
    uint8_t* at = m.tiles.data() + row / 16 * m.tile_bytes;
    const int lane = int(row % 16);
    for (int64_t block = 0; block < m.blocks; ++block) {
      const int64_t first = block * block_width(m);
      const int64_t end = std::min(first + block_width(m), m.columns);
      write_half(at + 2 * lane, m.scale[row * m.blocks + block]);
      if (m.format.zero == kVariable) at[32 + lane] = uint8_t(m.zero_of(row, block));
      if (m.format.zero == kMinimum)
        write_half(at + 32 + 2 * lane, m.minimum[row * m.blocks + block]);
      if (m.format.sub) write_sub(m, row, block, at + (m.format.zero == kMinimum ? 64 : 32) + lane);
      at += header_size(m.format, end - first);
      for (int64_t column = first; column < end; ++column) {
        const int64_t k = column - first;
        put(at + k / 32 * 64 * m.format.bits, m.format.bits, int(k % 32 / 4),
            4 * lane + int(k % 4), codes[row * m.columns + column]);
      }
      at += (end - first + 31) / 32 * 64 * m.format.bits;
    }
  }
}

int64_t bytes_of_tile(const Format& format, int64_t columns, int64_t width) {
  int64_t bytes = 0;
  for (int64_t first = 0; first < columns; first += width)
    bytes += header_size(format, std::min(width, columns - first)) +
             (std::min(width, columns - first) + 31) / 32 * 64 * format.bits;
  return bytes;
}

// Any byte that a super-block may hold, of int3 and quads -32 to 31, of pairs -8 to 7, the lowest of
// which comes in every row;
// exact: whole numbers so small that sums of 768 inputs stay.
void draw_sub(Matrix& m, bool exact, Random& random) {
  for (int64_t k = 0; k < m.rows * m.groups; ++k) {
    const bool digits = m.format.sub == kSubDigits, small = m.format.bits == 3;
    const int most = m.format.sub == kSubPairs ? 8 : small || m.format.sub == kSubQuads ? 32 : 128;
    const int any = random.below(2 * most) - most;
    const int scale = digits ? random.below(16) : most < 128 && k % m.groups == 1 ? -most : any;
    m.sub_scale.push_back(exact ? random.below(2) : scale);
    m.sub_minimum.push_back(exact ? random.below(3) : random.below(digits ? 16 : 256));
  }
}

}  // namespace

double from_half(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25)
                               : std::ldexp(double(fraction), -24);
  return half & 0x8000 ? -size : size;
}

uint16_t to_half(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (size >= 65520) return sign | 0x7c00;
  int exponent = size > 0 ? std::ilogb(size) : -14;
  if (exponent < -14) exponent = -14;
  const double steps = std::nearbyint(std::ldexp(size, 10 - exponent));  // 1024 of the exponent
  return uint16_t(sign | ((exponent + 14) * 1024 + int(steps)));
}

std::string Format::name() const {
  const char* zeros[] = {"fixed", "variable", "minimum"};
  const char* super = sub ? "super-blocks of " : "";
  return super + (table ? text("table of %d bits", bits) : text("int%d %s", bits, zeros[zero]));
}

std::vector<Format> all_formats() {
  std::vector<Format> all;
  for (int bits : {2, 3, 4, 5, 6, 8})
    for (int zero : {kFixed, kVariable, kMinimum}) all.push_back({bits, zero, false});
  for (int bits : {2, 3, 4}) all.push_back({bits, kFixed, true});
  all.push_back({2, kMinimum, false, kSubDigits, 16});
  all.push_back({3, kFixed, false, kSubBytes, 16});
  all.push_back({4, kMinimum, false, kSubBytes, 32});
  all.push_back({5, kMinimum, false, kSubBytes, 32});
  all.push_back({6, kFixed, false, kSubBytes, 16});
  all.push_back({4, kFixed, true, kSubBytes, 32});
  for (int bits : {2, 3}) all.push_back({bits, kFixed, true, kSubPairs, 32});
  all.push_back({4, kFixed, true, kSubQuads, 32});
  return all;
}

std::vector<int64_t> widths_of(const Format& format) {
  if (format.sub) return {format.group_width};
  return {32, 64, 128, 1 << 20};
}

std::vector<int> columns_of(const Format& format, const std::vector<int>& columns) {
  if (!format.sub) return columns;
  if (format.sub >= kSubPairs) return {32, 60, 100, 128, 160, 256, 300, 330, 393, 425, 500, 577};
  return {256, 512, 768};
}

float Matrix::weight(int64_t row, int64_t column) const {
  const int64_t group = group_of(column);
  const float size = float(scale_of(row, group)), value = float(level[row * columns + column]);
  if (format.zero == kMinimum) {
    const float product = value * size;
    return product + float(minimum_of(row, group));
  }
  return (value - float(zero_of(row, group))) * size;
}

TileMatrix Matrix::tile_matrix() const {
  return {tiles.data(), format.table ? table.data() : nullptr, rows, columns, group_width,
          tile_bytes, format.bits, format.zero, format.sub};
}

std::string Matrix::name() const {
  return text("%s, %lld x %lld, groups of %lld", format.name().c_str(), (long long)rows,
              (long long)columns, (long long)group_width);
}

Matrix random_matrix(const Format& format, int64_t rows, int64_t columns, int64_t group_width,
                     bool exact, Random& random) {
  group_width = std::min(group_width, columns);
  const int64_t groups = (columns + group_width - 1) / group_width;
  const int64_t width = format.sub ? 256 : group_width, blocks = (columns + width - 1) / width;
  const int64_t tile_bytes = bytes_of_tile(format, columns, width);
  Matrix m{format, rows, columns, group_width, groups, blocks, {}, {}, {}, {}, {}, {},
           Memory<uint8_t>((rows + 15) / 16 * tile_bytes), Memory<uint8_t>(16), tile_bytes};
  const int most = (1 << format.bits) - 1;
  const bool few = format.sub == kSubPairs && format.bits <= 3;  // levels of -15 to 15
  const int lowest = few ? 113 : 0, highest = few ? 143 : 255;
  for (int k = 0; k < 16; ++k)
    m.table[k] = uint8_t(k == 0                         ? lowest
                         : k == (1 << format.bits) - 1 ? highest
                                                        : lowest + random.below(highest - lowest + 1));
  std::vector<int> codes(rows * columns);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) {
      int code = random.below(most + 1);
      if (row == 0) code = most;
      if (row == rows - 1) code = column % 2 ? most : 0;
      codes[row * columns + column] = code;
      m.level.push_back(format.table ? m.table[code] - 128 : code);
    }
  for (int64_t k = 0; k < rows * blocks; ++k) {
    m.scale.push_back(to_half(exact ? 1 : random.within(0.001, 0.1)));
    m.minimum.push_back(to_half(exact ? random.below(9) - 4 : random.within(-1, 1)));
  }
  if (format.sub) draw_sub(m, exact, random);
  for (int64_t k = 0; k < rows * groups; ++k) {
    const int variable = k < groups ? (random.coin() ? most : 0) : random.below(most + 1);
    m.zero_point.push_back(format.table || format.zero == kMinimum ? 0
                           : format.zero == kFixed ? (most + 1) / 2 : variable);
  }
  lay_out(m, codes);
  return m;
}

}  // namespace crumb::check
