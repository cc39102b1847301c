// How sums of products that AMX stored join the outputs. In: sums of some groups, their headers, and
// scales of the activations. Out: outputs of 16 rows x some tokens, with those added.
// The order is that of tile_matmul.inl, of super-blocks that of super_matmul.inl.

constexpr int64_t kGroupsAtOnce = 4;  // of 32 inputs or more: all of a block of 128, or of more
constexpr int64_t kTokensAtOnce = 32;
constexpr int64_t kSumsOfGroup = 2 * kTokensAtOnce * kTileRows;  // (tile, 32 tokens, 16 rows)

// A group's whole numbers in place of what expand_headers puts there. Groups of 16 do not come here.
inline void store_super_header(const TileMatrix& m, const uint8_t* at, int64_t group, float* scale,
                               float* beside) {
  const uint8_t* sub = at + own_header_bytes(m.zero);
  store_floats(scale, same_bits<Floats>(sub_scale_of<kFixed, kChunkInputs>(sub, group)));
  if (m.zero == kMinimum)
    store_floats(beside, same_bits<Floats>(sub_term_of<kMinimum, kChunkInputs>(sub, group)));
}

// Those of a tile, in the way of expand_headers.
inline void expand_super_headers(const TileMatrix& m, int64_t tile, float* scale, float* beside) {
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  for (int64_t first = 0; first < m.columns; first += kSuperInputs) {
    for (int64_t group = 0; group < super_groups(m); ++group) {
      store_super_header(m, at, group, scale, beside);
      scale += kTileRows;
      beside += kTileRows;
    }
    at += block_bytes(m, kSuperInputs);
  }
}

// What the sums of some blocks need to join the outputs: see Strip in strip_matmul.inl.
struct Scaled {
  const float *scale, *beside;  // headers of the tile from the first group on
  const uint8_t* super;         // the tile's super-block, if it has these
  int64_t next_header;          // floats from one group's header to the next
  const int32_t* sums;          // of the tile, kSumsOfGroup from one group to the next
  const float* by;              // scales of the activations from the first token on
  const float* totals;          // (tokens, 4): their sums
  float* out;                   // of the tile, (32 tokens, 16 rows)
};

// The sums of some blocks' groups join the outputs of some tokens.
template <int zero, int blocks, int groups>
CRUMB_INLINE void scale_tokens(const Scaled& of, int64_t scales, int64_t tokens) {
  Header header[blocks * groups];
#pragma GCC unroll 4
  for (int k = 0; k < blocks * groups; ++k)
    header[k] = expanded_header(of.scale + k * of.next_header, of.beside + k * of.next_header, zero);
#pragma GCC unroll 2
  for (int64_t t = 0; t < tokens; ++t) {
    Floats out = load_floats(of.out + 16 * t);
#pragma GCC unroll 4
    for (int b = 0; b < blocks; ++b) {
      Floats block = all_floats(0.0f);
#pragma GCC unroll 4
      for (int k = b * groups; k < (b + 1) * groups; ++k) {
        Ints dot;
        __builtin_memcpy(&dot, of.sums + k * kSumsOfGroup + 16 * t, 64);
        const float sum = zero == kFixed ? 0.0f : of.totals[t * kGroupsAtOnce + k];
        if (zero == kVariable) dot = dot - header[k].zero_point * all_ints(int32_t(sum));
        block = join_group(block, dot, header[k], zero, sum);
      }
      out = fma(block, of.by[t * scales + b], out);
    }
    store_floats(of.out + 16 * t, out);
  }
}

// The same for a block of a super-block, whose headers are whole numbers.
template <int zero>
void scale_super(const Scaled& of, int64_t, int64_t, int64_t scales, int64_t tokens) {
  const Header header = read_super_header<zero>(of.super);
  Ints sub_scale[kGroupsAtOnce], sub_minimum[kGroupsAtOnce];
#pragma GCC unroll 4
  for (int k = 0; k < kGroupsAtOnce; ++k) {
    sub_scale[k] = same_bits<Ints>(load_floats(of.scale + k * of.next_header));
    sub_minimum[k] = same_bits<Ints>(load_floats(of.beside + k * of.next_header));
  }
  for (int64_t t = 0; t < tokens; ++t) {
    Ints sum = all_ints(0), term = all_ints(0);
#pragma GCC unroll 4
    for (int k = 0; k < kGroupsAtOnce; ++k) {
      Ints dot;
      __builtin_memcpy(&dot, of.sums + k * kSumsOfGroup + 16 * t, 64);
      sum = sum + dot * sub_scale[k];
      if (zero == kMinimum)
        term = term + sub_minimum[k] * all_ints(int32_t(of.totals[t * kGroupsAtOnce + k]));
    }
    const Floats out = load_floats(of.out + 16 * t);
    store_floats(of.out + 16 * t, join_super<zero>(out, sum, term, 0, header, of.by[t * scales]));
  }
}

template <int zero>
void scale_groups(const Scaled& of, int64_t blocks, int64_t groups, int64_t scales, int64_t tokens) {
  if (blocks == 4) return scale_tokens<zero, 4, 1>(of, scales, tokens);
  if (blocks == 2) return scale_tokens<zero, 2, 2>(of, scales, tokens);
  switch (groups) {
    case 1: return scale_tokens<zero, 1, 1>(of, scales, tokens);
    case 2: return scale_tokens<zero, 1, 2>(of, scales, tokens);
    case 3: return scale_tokens<zero, 1, 3>(of, scales, tokens);
    default: return scale_tokens<zero, 1, 4>(of, scales, tokens);
  }
}

using Scale = void (*)(const Scaled&, int64_t, int64_t, int64_t, int64_t);
