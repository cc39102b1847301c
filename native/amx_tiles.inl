// AMX's tile registers. In: unpacked codes as rows of its second operand, which a slice of the tile
// layout is as it lies: 16 rows of a matrix x 64 inputs; 16 tokens that lie together. Out: their sums.

constexpr int64_t kTokensAtOnce = 32;
constexpr int64_t kSumsOfGroup = 2 * kTokensAtOnce * kTileRows;  // (tile, 32 tokens, 16 rows)

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#ifndef CRUMB_EMULATES_AMX
// Assembly, because gcc 12's intrinsic names only 8 of the 64 bytes as read.
inline void load_tile_shapes(const TileShapes& shapes) {
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}
#endif

// Registers 0..3: sums of 2 token blocks x 2 tiles. 4, 5: tokens. 6, 7: codes.
inline void shape_tiles(int64_t step) {
  TileShapes shapes;
  for (int k = 0; k < 8; ++k) {
    const bool tokens = k == 4 || k == 5;
    shapes.rows[k] = uint8_t(k < 6 ? 16 : step / 4);
    shapes.row_bytes[k] = uint16_t(tokens ? step : 64);
  }
  load_tile_shapes(shapes);
}

// sum += 16 tokens times codes; tile registers, which must be written as numbers.
#define MULTIPLY_TILES(sum, tokens, codes)   \
  do {                                       \
    if constexpr (is_signed)                 \
      _tile_dpbssd(sum, tokens, codes);      \
    else                                     \
      _tile_dpbsud(sum, tokens, codes);      \
  } while (0)

// Where 16 tokens' activations of an input lie, and from one row of their tile to the next.
constexpr int64_t kTokenBytes = 64;
CRUMB_INLINE const int8_t* tokens_at(const int8_t* x, int64_t input) {
  return x + input / 64 * (kTokensTogether * kTokenBytes) + input % 64;
}

// One step of a block joins the sums in registers 0..3, or begins them. Sums of the block before,
// which are still there, are stored just before their register is needed: storing then overlaps
// with multiplying.
template <bool is_signed, bool two_tokens, bool two_tiles, bool begins>
CRUMB_INLINE void multiply_step(const int8_t* x, int64_t stride, const uint8_t* codes,
                                int64_t strip_bytes, int32_t* before) {
#define BEGIN_SUM(sum)                                    \
  do {                                                    \
    if (begins && before) _tile_stored(sum, before + 256 * sum, 64); \
    if (begins) _tile_zero(sum);                          \
  } while (0)
  _tile_loadd(4, x, kTokenBytes);
  _tile_loadd(6, codes, 64);
  BEGIN_SUM(0);
  MULTIPLY_TILES(0, 4, 6);
  if constexpr (two_tokens) {
    _tile_loadd(5, x + kTokensTogether * stride, kTokenBytes);
    BEGIN_SUM(1);
    MULTIPLY_TILES(1, 5, 6);
  }
  if constexpr (two_tiles) {
    _tile_loadd(7, codes + strip_bytes, 64);
    BEGIN_SUM(2);
    MULTIPLY_TILES(2, 4, 7);
    if constexpr (two_tokens) {
      BEGIN_SUM(3);
      MULTIPLY_TILES(3, 5, 7);
    }
  }
#undef BEGIN_SUM
}

// The sums of a block as (tile, token block, 16 tokens, 16 rows).
template <bool two_tokens, bool two_tiles>
CRUMB_INLINE void store_sums(int32_t* sums) {
  _tile_stored(0, sums, 64);
  if constexpr (two_tokens) _tile_stored(1, sums + 256, 64);
  if constexpr (two_tiles) _tile_stored(2, sums + 512, 64);
  if constexpr (two_tokens && two_tiles) _tile_stored(3, sums + 768, 64);
}
