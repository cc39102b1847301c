// Quantized matrices of super-blocks times int8 activations. In: MatmulJob. Out: its rows of `out`.
// Groups stay whole numbers: their sums are multiplied by sub-scales and added, for the 128 inputs
// that share a scale of their activations, before anything is rounded. Few tokens here, many in
// super_strip.inl. A group is a chunk or half of one.

// The zero of the super-blocks whose codes have these bits; engine_bindings.cpp lets in no other.
constexpr int super_zero(int bits, bool table) {
  return table || bits == 3 || bits == 6 ? kFixed : kMinimum;
}

// What a super-block's header says of all its groups; the minimum is one to add.
template <int zero>
CRUMB_INLINE Header read_super_header(const uint8_t* block) {
  Header header = read_header(block, zero);
  if constexpr (zero == kMinimum) header.minimum = header.minimum * all_floats(-1.0f);
  return header;
}

// The header of one group of `width` inputs; `all` is that of its super-block, which is at `block`.
template <int zero, int width>
CRUMB_INLINE Header header_of_group(const Header& all, const uint8_t* block, int64_t group) {
  constexpr bool kDigits = zero == kMinimum && width == 16;
  const uint8_t* sub = block + own_header_bytes(zero) + kTileRows * group;
  Header header = all;
  if constexpr (kDigits) {
    const Ints digits = widen_bytes(sub);
    header.scale = all.scale * to_floats(low_digit(digits));
    header.minimum = all.minimum * to_floats(shift_right<4>(digits));
  } else {
    header.scale = all.scale * to_floats(widen_signed_bytes(sub));
    if constexpr (zero == kMinimum)
      header.minimum =
          all.minimum * to_floats(widen_bytes(sub + kTileRows * (kSuperInputs / width)));
  }
  return header;
}

// The same for any matrix of super-blocks.
CRUMB_INLINE Header header_of_group(const uint8_t* block, const TileMatrix& m, int64_t group) {
  if (m.zero == kFixed) {
    const Header all = read_super_header<kFixed>(block);
    return header_of_group<kFixed, 32>(all, block, group);  // no matter how wide
  }
  const Header all = read_super_header<kMinimum>(block);
  if (m.sub == kSubDigits) return header_of_group<kMinimum, 16>(all, block, group);
  return header_of_group<kMinimum, 32>(all, block, group);
}

// The whole numbers of a group's 16 rows, `sub` at those of its super-block: what multiplies the
// scale, and what multiplies a sum of activations: the minimum's, or with a fixed zero the same.
template <int zero, int width>
CRUMB_INLINE Ints sub_scale_of(const uint8_t* sub, int64_t group) {
  if constexpr (zero == kMinimum && width == 16) return low_digit(widen_bytes(sub + 16 * group));
  return widen_signed_bytes(sub + 16 * group);
}
template <int zero, int width>
CRUMB_INLINE Ints sub_term_of(const uint8_t* sub, int64_t group) {
  if constexpr (zero == kFixed) return sub_scale_of<zero, width>(sub, group);
  if constexpr (width == 16) return shift_right<4>(widen_bytes(sub + 16 * group));
  return widen_bytes(sub + 16 * (kSuperInputs / width + group));
}
// Terms of a group and the next as pairs of 16-bit integers.
template <int zero, int width>
CRUMB_INLINE Ints sub_terms_of(const uint8_t* sub, int64_t group) {
  return make_pairs(sub_term_of<zero, width>(sub, group), sub_term_of<zero, width>(sub, group + 1));
}

// Sums of activations of two groups as a pair: (tokens, pairs).
inline void pair_sums(const Activations& x, int64_t token, int64_t tokens, int32_t* to) {
  const int32_t* sum = x.sum + token * x.blocks;
  for (int64_t k = 0; k < tokens * x.blocks / 2; ++k)
    to[k] = int32_t((uint32_t(sum[2 * k]) & 0xffff) | uint32_t(sum[2 * k + 1]) << 16);
}

#ifndef CRUMB_MULTIPLIES_PAIRS
// A group's sub-scales as it is multiplied by them.
CRUMB_INLINE Ints multiplier(Ints sub_scale) { return sub_scale; }

// sum += by times what `count` slices of a chunk from `first` on give with one token. `raised`: how
// much higher odd slices lie. `shift`: what a fixed zero takes from the group.
template <int bits, int chains, int raised, int first, int count>
CRUMB_INLINE void add_group(Ints& sum, const Codes (&slices)[8], const int8_t* x, Ints by,
                            Ints shift) {
  Ints dot[chains];
  dot[0] = shift;
  if constexpr (chains > 1) dot[1] = all_ints(0);
  dot_chunk<bits, chains, first, count>(dot, slices, x);
  if constexpr (chains > 1) dot[0] = dot[0] + shift_right<raised>(dot[1]);
  sum = sum + dot[0] * by;
}

// sum[k][t] += by of tile k times what so many slices of it give with token t. shift: null, or
// (tokens, shifts) what a fixed zero takes from the group.
template <int bits, int slices, int tiles, int tokens>
CRUMB_INLINE void add_strip_group(Ints (&sum)[tiles][tokens], const uint8_t* codes,
                                  int64_t strip_bytes, const int8_t* x, int64_t stride,
                                  const Ints (&by)[tiles], const int32_t* shift, int64_t shifts) {
  Ints dot[tiles][tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 2
    for (int k = 0; k < tiles; ++k) dot[k][t] = all_ints(shift ? shift[t * shifts] : 0);
  dot_strip<bits, slices>(dot, codes, strip_bytes, x, stride, 1);
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 2
    for (int k = 0; k < tiles; ++k) sum[k][t] = sum[k][t] + dot[k][t] * by[k];
}
#endif

// Whether sums of activations are multiplied by `terms`: by sub-minima, or by sub-scales where 16-bit
// sums are multiplied, from which a fixed zero cannot be taken before.
template <int bits, bool table>
constexpr bool has_terms() {
  return super_zero(bits, table) == kMinimum || kMultipliesPairs;
}
// Where it can, a group begins with what its zero takes.
template <int bits, bool table>
constexpr bool has_shifts() {
  return super_zero(bits, table) == kFixed && !kMultipliesPairs;
}

// What 128 inputs add to an output. `zero`: what is still to be taken off by terms; `by`: the scale
// of the activations.
template <int kind>
CRUMB_INLINE Floats join_super(Floats out, Ints sum, Ints term, int32_t zero, const Header& header,
                               float by) {
  if constexpr (kind == kFixed)
    return fma(to_floats(zero ? sum - term * all_ints(zero) : sum) * header.scale, by, out);
  return fma(fma(to_floats(sum), header.scale, to_floats(term) * header.minimum), by, out);
}

constexpr int64_t kBlockChunks = kBlockInputs / kChunkInputs;
constexpr int64_t kSuperBlocks = kSuperInputs / kBlockInputs;

// One group of a chunk, `count` slices from `first` on, joins the sums of some tokens.
template <int bits, bool table, int first, int count, int tokens>
CRUMB_INLINE void fused_super_group(const MatmulJob& job, Ints (&sum)[tokens],
                                    const Codes (&slices)[8], const int8_t* x, Ints by,
                                    const int32_t* total, int32_t zero) {
  constexpr int kDotBits = table ? 8 : bits, kChains = tokens == 1 ? 2 : 1;
  constexpr bool kRaised = kRaisedCodes && tokens == 1 && !table && raised_by(bits) > 0;
  constexpr int kUp = kRaised ? raised_by(bits) : 0;
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) {
    const int32_t shift = has_shifts<bits, table>() ? -zero * total[t * job.x.blocks] : 0;
    add_group<kDotBits, kChains, kUp, first, count>(sum[t], slices, x + t * job.x.stride, by,
                                                    all_ints(shift));
  }
}

// The codes of 128 inputs join them. `group`: the first of their super-block.
template <int bits, bool table, int width, bool fetch, int tokens>
CRUMB_INLINE void fused_super_sums(const MatmulJob& job, Ints (&sum)[tokens], const uint8_t* at,
                                   const int8_t* x, const uint8_t* sub, int64_t group,
                                   const int32_t* total, int32_t zero) {
  constexpr bool kRaised = kRaisedCodes && tokens == 1 && !table && raised_by(bits) > 0;
  constexpr int kKind = super_zero(bits, table), kSlices = width / kSliceInputs;
  for (int64_t chunk = 0; chunk < kBlockChunks; ++chunk) {
    Codes slices[8];
    unpack_chunk<bits, kRaised>(at, slices);
    if constexpr (table) look_up(slices, job.matrix.table);
    if constexpr (fetch) prefetch_codes<bits>(at);
    const Ints by = multiplier(sub_scale_of<kKind, width>(sub, group++));
    fused_super_group<bits, table, 0, kSlices>(job, sum, slices, x, by, total++, zero);
    if constexpr (width < kChunkInputs) {
      const Ints next = multiplier(sub_scale_of<kKind, width>(sub, group++));
      fused_super_group<bits, table, kSlices, kSlices>(job, sum, slices, x, next, total++, zero);
    }
    at += chunk_bytes(bits);
    x += kChunkInputs;
  }
}

// `pairs`: of sums of the activations of the token and those behind it.
template <int bits, bool table, int tokens, int width, bool fetch>
CRUMB_INLINE void fused_super_tile(const MatmulJob& job, int64_t tile, int64_t token,
                                   const int32_t* pairs) {
  constexpr int kKind = super_zero(bits, table);
  constexpr int64_t kGroups = kBlockInputs / width;
  constexpr bool kLeft = !has_shifts<bits, table>();  // the zero, to the end
  const TileMatrix& m = job.matrix;
  const int32_t zero = common_zero(m, table ? 8 : bits);
  const int64_t scales = scale_count(job.x), all_pairs = job.x.blocks / 2;
  const int8_t* x = job.x.codes + token * job.x.stride;
  const float* scale = job.x.scale + token * scales;
  const int32_t* total = job.x.sum + token * job.x.blocks;
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  Floats out[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) out[t] = all_floats(0.0f);

  for (int64_t first = 0; first < m.columns; first += kSuperInputs) {
    const Header header = read_super_header<kKind>(at);
    const uint8_t* sub = at + own_header_bytes(kKind);
    at += header_bytes(m);
    for (int64_t group = 0; group < kSuperBlocks * kGroups; group += kGroups) {
      Ints sum[tokens], term[tokens];
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) sum[t] = term[t] = all_ints(0);
      fused_super_sums<bits, table, width, fetch>(job, sum, at, x, sub, group, total, zero);
      if constexpr (has_terms<bits, table>())
#pragma GCC unroll 4
        for (int64_t k = 0; k < kGroups / 2; ++k) {
          const Ints terms = sub_terms_of<kKind, width>(sub, group + 2 * k);
#pragma GCC unroll 8
          for (int t = 0; t < tokens; ++t)
            term[t] = add_pair_products(term[t], terms, pairs[t * all_pairs + k]);
        }
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t)
        out[t] = join_super<kKind>(out[t], sum[t], term[t], kLeft ? zero : 0, header,
                                   scale[t * scales]);
      at += kBlockChunks * chunk_bytes(bits);
      x += kBlockInputs;
      pairs += kGroups / 2;
      total += kGroups;
      ++scale;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) finish_tile(job, tile, token + t, out[t]);
}
