// Quantized matrices times int8 activations on AMX tiles. In: MatmulJob. Out: its rows of `out`.
// The tile layout's slices are rows of AMX's second operand as they lie once unpacked to signed
// bytes: 16 rows of the matrix x 64 inputs against 16 tokens. Sums and their order are those of
// tile_matmul.inl, so the bits are too. Few tokens go there, and groups of 16, of which an
// instruction would multiply a quarter of what it can.

constexpr int64_t kAmxTokens = 12;  // fewer are faster in vector registers
constexpr int64_t kBlocksAtOnce = 4;  // whose sums wait in scratch for their scales
constexpr int64_t kTokensAtOnce = 32;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Registers 0..3: sums of 2 token blocks x 2 tiles. 4, 5: tokens. 6, 7: codes.
inline void shape_tiles(int64_t step) {
  TileShapes shapes;
  for (int k = 0; k < 8; ++k) {
    const bool tokens = k == 4 || k == 5;
    shapes.rows[k] = uint8_t(k < 6 ? 16 : step / 4);
    shapes.row_bytes[k] = uint16_t(tokens ? step : 64);
  }
  // Assembly, because gcc 12's intrinsic names only 8 of the 64 bytes as read.
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}

// Inputs that one instruction multiplies.
inline int64_t inputs_at_once(const TileMatrix& m) { return m.group_width == 32 ? 32 : 64; }

// Groups of a block, 1 but for super-blocks.
inline int64_t groups_of_block(const TileMatrix& m) { return m.sub == kNoSub ? 1 : super_groups(m); }

// Where the tile's block lies that has this block of activations.
inline const uint8_t* header_of(const TileMatrix& m, int64_t tile, int64_t block) {
  const int64_t number = m.group_width > kBlockInputs ? 0 : block / groups_of_block(m);
  return m.tiles + tile * m.tile_bytes + block_offset(m, number);
}

// Bytes of a block of this many inputs once unpacked to whole steps.
inline int64_t unpacked_bytes(int64_t inputs, int64_t step) { return 16 * padded_to(inputs, step); }

inline int64_t inputs_of_block(const MatmulJob& job, int64_t block) {
  const int64_t left = job.matrix.columns - block * job.x.block_inputs;
  return left < job.x.block_inputs ? left : job.x.block_inputs;
}

// A block's codes minus their zeros as signed bytes, filled up with zeros to whole steps. Codes of
// 8 bits whose zero is not fixed stay unsigned.
template <int bits, bool table>
void unpack_signed_block(const MatmulJob& job, int64_t tile, int64_t block, int64_t step,
                         uint8_t* to) {
  const TileMatrix& m = job.matrix;
  const uint8_t* at = header_of(m, tile, block);
  const Header header = read_header(at, m.zero);
  const int32_t common = table ? 128 : m.zero == kFixed ? 1 << (bits - 1) : 0;
  const bool folded = m.zero == kVariable && bits < 8;
  const Ints rows = folded ? header.zero_point : all_ints(common);
  const __m512i zero = (__m512i)((CodePart)rows.part[0] * 0x01010101u);
  at += header_bytes(m);
  if (m.group_width > kBlockInputs) at += block * (kBlockInputs / kChunkInputs) * chunk_bytes(bits);
  at += block % groups_of_block(m) * chunk_bytes(bits);  // a super-block's groups are chunks
  const int64_t chunks = chunk_count(inputs_of_block(job, block));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Codes slices[8];
    unpack_chunk<bits>(at, slices);
    if constexpr (table) look_up(slices, m.table);
    prefetch_codes<bits>(at);
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s)
      _mm512_store_si512(to + 64 * s, _mm512_sub_epi8((__m512i)slices[s].part[0], zero));
    at += chunk_bytes(bits);
    to += 8 * 64;
  }
  if (step == 64 && chunks % 2) __builtin_memset(to, 0, 8 * 64);
}

using Unpack = void (*)(const MatmulJob&, int64_t, int64_t, int64_t, uint8_t*);

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

// Sums of one block from input `first`, stored as (tile, token block, 16 tokens, 16 rows).
template <bool is_signed, bool two_tokens, bool two_tiles>
CRUMB_INLINE void multiply_block(const int8_t* x, int64_t stride, int64_t first,
                                 const uint8_t* codes, int64_t strip_bytes, int64_t steps,
                                 int64_t step, int32_t* sums) {
  _tile_zero(0);
  if constexpr (two_tokens) _tile_zero(1);
  if constexpr (two_tiles) _tile_zero(2);
  if constexpr (two_tokens && two_tiles) _tile_zero(3);
  for (int64_t k = 0; k < steps; ++k) {
    const int8_t* from = tokens_at(x, first + k * step);
    _tile_loadd(4, from, kTokenBytes);
    _tile_loadd(6, codes + k * step * 16, 64);
    MULTIPLY_TILES(0, 4, 6);
    if constexpr (two_tokens) {
      _tile_loadd(5, from + kTokensTogether * stride, kTokenBytes);
      MULTIPLY_TILES(1, 5, 6);
    }
    if constexpr (two_tiles) {
      _tile_loadd(7, codes + strip_bytes + k * step * 16, 64);
      MULTIPLY_TILES(2, 4, 7);
      if constexpr (two_tokens) MULTIPLY_TILES(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (two_tokens) _tile_stored(1, sums + 256, 64);
  if constexpr (two_tiles) _tile_stored(2, sums + 512, 64);
  if constexpr (two_tokens && two_tiles) _tile_stored(3, sums + 768, 64);
}

// Sums of `count` blocks join the outputs of one tile, block by block.
template <int zero, int count>
CRUMB_INLINE void scale_blocks(const MatmulJob& job, int64_t tile, int64_t token, int64_t tokens,
                               int64_t block, const int32_t* sums, float* out) {
  Header header[count];
#pragma GCC unroll 8
  for (int b = 0; b < count; ++b) {
    const TileMatrix& m = job.matrix;
    const uint8_t* at = header_of(m, tile, block + b);
    header[b] = m.sub == kNoSub ? read_header(at, zero)
                                : header_of_group(at, m, (block + b) % groups_of_block(m));
  }
  const float* scale = job.x.scale + token * job.x.blocks + block;
  const int32_t* total = job.x.sum + token * job.x.blocks + block;
#pragma GCC unroll 2
  for (int64_t t = 0; t < tokens; ++t) {
    Floats joined = load_floats(out + 16 * t);
#pragma GCC unroll 8
    for (int b = 0; b < count; ++b) {
      Ints dot;
      __builtin_memcpy(&dot, sums + b * 1024 + 16 * t, 64);
      const int32_t sum = zero == kFixed ? 0 : total[b];
      if (zero == kVariable) dot = dot - header[b].zero_point * all_ints(sum);
      joined = finish_block(joined, dot, header[b], zero, scale[b], sum);
    }
    store_floats(out + 16 * t, joined);
    scale += job.x.blocks;
    total += job.x.blocks;
  }
}

template <int zero>
void scale_tile(const MatmulJob& job, int64_t tile, int64_t token, int64_t tokens,
                       int64_t block, int64_t count, const int32_t* sums, float* out) {
  if (count == kBlocksAtOnce)
    return scale_blocks<zero, kBlocksAtOnce>(job, tile, token, tokens, block, sums, out);
  for (int64_t b = 0; b < count; ++b)
    scale_blocks<zero, 1>(job, tile, token, tokens, block + b, sums + b * 1024, out);
}

using Scale = void (*)(const MatmulJob&, int64_t, int64_t, int64_t, int64_t, int64_t,
                       const int32_t*, float*);

// Unpacked blocks of one or two tiles: all of them, or a few at a time where tokens are so few that
// they pass once.
struct Strips {
  uint8_t* codes;
  int64_t bytes;  // of one tile
  Unpack unpack;  // null: all is unpacked
  Scale scale;
};

template <bool is_signed, bool two_tokens, bool two_tiles>
void amx_tokens(const MatmulJob& job, int64_t tile, int64_t token, Strips strips, int64_t step) {
  constexpr int kTiles = two_tiles ? 2 : 1;
  const int64_t left = job.tokens - token, tokens = left < kTokensAtOnce ? left : kTokensAtOnce;
  float* out = reinterpret_cast<float*>(job.scratch);  // (tile, 32 tokens, 16 rows)
  int32_t* sums = reinterpret_cast<int32_t*>(out + 2 * 32 * 16);
  __builtin_memset(out, 0, 2 * 32 * 16 * 4);
  const int8_t* x = job.x.codes + token * job.x.stride;
  const int64_t width = job.x.block_inputs, blocks = job.x.blocks;
  const uint8_t* codes = strips.codes;
  for (int64_t block = 0; block < blocks; block += kBlocksAtOnce) {
    const int64_t count = blocks - block < kBlocksAtOnce ? blocks - block : kBlocksAtOnce;
    if (strips.unpack) codes = strips.codes;
    for (int64_t b = 0; b < count; ++b) {
      const int64_t inputs = inputs_of_block(job, block + b), steps = (inputs + step - 1) / step;
      if (strips.unpack)
        for (int64_t k = 0; k < kTiles; ++k)
          strips.unpack(job, tile + k, block + b, step,
                        strips.codes + k * strips.bytes + b * unpacked_bytes(width, step));
      multiply_block<is_signed, two_tokens, two_tiles>(x, job.x.stride, (block + b) * width, codes,
                                                       strips.bytes, steps, step, sums + b * 1024);
      codes += unpacked_bytes(inputs, step);
    }
    for (int64_t k = 0; k < kTiles; ++k)
      strips.scale(job, tile + k, token, tokens, block, count, sums + k * 512, out + k * 512);
  }
  for (int64_t k = 0; k < kTiles; ++k)
    for (int64_t t = 0; t < tokens; ++t)
      finish_tile(job, tile + k, token + t, load_floats(out + k * 512 + 16 * t));
}

using Tokens = void (*)(const MatmulJob&, int64_t, int64_t, Strips, int64_t);
// By whether codes are signed, there are more than 16 tokens, and two tiles.
constexpr Tokens kAmxTokensOf[2][2][2] = {
    {{amx_tokens<false, false, false>, amx_tokens<false, false, true>},
     {amx_tokens<false, true, false>, amx_tokens<false, true, true>}},
    {{amx_tokens<true, false, false>, amx_tokens<true, false, true>},
     {amx_tokens<true, true, false>, amx_tokens<true, true, true>}}};

template <int bits, bool table>
void amx_tiles(const MatmulJob& job) {
  const TileMatrix& m = job.matrix;
  const int64_t step = inputs_at_once(m), blocks = job.x.blocks;
  const bool once = job.tokens <= kTokensAtOnce;
  const bool is_signed = bits < 8 || m.zero == kFixed;
  const Unpack unpack = unpack_signed_block<bits, table>;
  const Scale scale = m.zero == kMinimum ? scale_tile<kMinimum>
                      : is_signed        ? scale_tile<kFixed>
                                         : scale_tile<kVariable>;
  const Strips strips{job.scratch + kAmxScratch - (once ? 2 * kBlocksAtOnce * 128 * 16 : 0),
                      once ? kBlocksAtOnce * 128 * 16 : 16 * padded_to(m.columns, 64),
                      once ? unpack : nullptr, scale};
  shape_tiles(step);
  for (int64_t tile = job.first_tile; tile < job.last_tile; tile += 2) {
    const bool two = tile + 1 < job.last_tile;
    for (int64_t k = 0; k <= two && !once; ++k) {
      uint8_t* to = strips.codes + k * strips.bytes;
      for (int64_t block = 0; block < blocks; ++block) {
        unpack(job, tile + k, block, step, to);
        to += unpacked_bytes(inputs_of_block(job, block), step);
      }
    }
    for (int64_t token = 0; token < job.tokens; token += kTokensAtOnce)
      kAmxTokensOf[is_signed][job.tokens - token > 16][two](job, tile, token, strips, step);
  }
  _tile_release();
}

void amx_matmul(const MatmulJob& job) {
  if (!job.x.together) return tile_matmul(job);
  if (job.matrix.table) return amx_tiles<4, true>(job);
  switch (job.matrix.bits) {
    case 2: return amx_tiles<2, false>(job);
    case 3: return amx_tiles<3, false>(job);
    case 4: return amx_tiles<4, false>(job);
    case 5: return amx_tiles<5, false>(job);
    case 6: return amx_tiles<6, false>(job);
    default: return amx_tiles<8, false>(job);
  }
}
