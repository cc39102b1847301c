// How sums of products that AMX stored join the outputs. In: sums of some groups, their headers, and
// scales of the activations. Out: outputs of 16 rows x some tokens, with those added.
// The order is that of tile_matmul.inl.

constexpr int64_t kGroupsAtOnce = 4;  // of 32 inputs or more: all of a block of 128, or of more

// What the sums of some blocks need to join the outputs: see Strip in strip_matmul.inl.
struct Scaled {
  const float *scale, *beside;  // headers of the tile from the first group on
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
