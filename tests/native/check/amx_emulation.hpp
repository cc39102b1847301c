// AMX's tile instructions without AMX, for native/isa_amx.cpp with CRUMB_EMULATES_AMX.
// In: the shapes that `ldtilecfg` reads. Out: what the instructions give, as the manual defines them;
// the registers of each thread are its own. A register outside 0..7 or its shape ends the program.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbsud

namespace {

struct EmulatedTile {
  int rows = 0, row_bytes = 0;
  uint8_t bytes[16][64] = {};
};

inline EmulatedTile& emulated_tile(int number) {
  static thread_local EmulatedTile tiles[8];
  if (number < 0 || number > 7) std::abort();
  return tiles[number];
}

// Shapes: palette, start, 14 reserved bytes, row bytes of 16 registers, rows of 16 registers.
template <class Shapes>
void load_tile_shapes(const Shapes& shapes) {
  static_assert(sizeof shapes == 64);
  for (int k = 0; k < 8; ++k) {
    EmulatedTile& tile = emulated_tile(k);
    tile = EmulatedTile();
    tile.rows = shapes.rows[k];
    tile.row_bytes = shapes.row_bytes[k];
    if (tile.rows > 16 || tile.row_bytes > 64) std::abort();
  }
}

inline void emulated_load(int number, const void* at, int64_t stride) {
  EmulatedTile& tile = emulated_tile(number);
  std::memset(tile.bytes, 0, sizeof tile.bytes);
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(tile.bytes[row], static_cast<const uint8_t*>(at) + row * stride, tile.row_bytes);
}

inline void emulated_store(int number, void* at, int64_t stride) {
  const EmulatedTile& tile = emulated_tile(number);
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(static_cast<uint8_t*>(at) + row * stride, tile.bytes[row], tile.row_bytes);
}

inline void emulated_zero(int number) {
  std::memset(emulated_tile(number).bytes, 0, sizeof(EmulatedTile::bytes));
}

// sum[m][n] += the four products of a[m][4k..] with b[k][4n..], for each k.
template <class Second>
void emulated_multiply(int sum_number, int a_number, int b_number) {
  EmulatedTile& sum = emulated_tile(sum_number);
  const EmulatedTile &a = emulated_tile(a_number), &b = emulated_tile(b_number);
  if (a.row_bytes != 4 * b.rows || sum.rows != a.rows || sum.row_bytes != b.row_bytes) std::abort();
  for (int m = 0; m < sum.rows; ++m)
    for (int n = 0; n < sum.row_bytes / 4; ++n) {
      int32_t total;
      std::memcpy(&total, &sum.bytes[m][4 * n], 4);
      for (int k = 0; k < b.rows; ++k)
        for (int i = 0; i < 4; ++i)
          total += int32_t(int8_t(a.bytes[m][4 * k + i])) * int32_t(Second(b.bytes[k][4 * n + i]));
      std::memcpy(&sum.bytes[m][4 * n], &total, 4);
    }
}

}  // namespace

#define _tile_loadd(number, at, stride) emulated_load(number, at, stride)
#define _tile_stored(number, at, stride) emulated_store(number, at, stride)
#define _tile_zero(number) emulated_zero(number)
#define _tile_dpbssd(sum, a, b) emulated_multiply<int8_t>(sum, a, b)
#define _tile_dpbsud(sum, a, b) emulated_multiply<uint8_t>(sum, a, b)
#define _tile_release() \
  do {                  \
  } while (0)
