// Quantized matrices of super-blocks times int8 activations. In: MatmulJob. Out: its rows of `out`.
// Groups stay whole numbers: their sums are multiplied by sub-scales and added, for the 128 inputs
// that share a scale of their activations, before anything is rounded. Few tokens here, many in
// super_strip.inl. A group is a chunk or half of one.

// A kind of super-blocks. `width`: inputs of a group; `dot_bits`: of what is multiplied.
template <int bits_, bool table_, int zero_, int sub_, int width_>
struct SuperKind {
  static constexpr int bits = bits_, zero = zero_, sub = sub_, width = width_;
  static constexpr bool table = table_;
  static constexpr int dot_bits = table ? 8 : bits;
  static constexpr bool ragged = sub >= kSubPairs;  // the last super-block of a row may be smaller
};

// Calls visit(the kind of a matrix); engine_bindings.cpp lets in no other.
template <class Visit>
CRUMB_INLINE void with_super_kind(const TileMatrix& m, Visit visit) {
  if (m.sub == kSubQuads) return visit(SuperKind<4, true, kFixed, kSubQuads, 32>{});
  if (m.sub == kSubPairs) {
    if (m.bits == 2) return visit(SuperKind<2, true, kFixed, kSubPairs, 32>{});
    return visit(SuperKind<3, true, kFixed, kSubPairs, 32>{});
  }
  if (m.table) return visit(SuperKind<4, true, kFixed, kSubBytes, 32>{});
  switch (m.bits) {
    case 2: return visit(SuperKind<2, false, kMinimum, kSubDigits, 16>{});
    case 3: return visit(SuperKind<3, false, kFixed, kSubBytes, 16>{});
    case 4: return visit(SuperKind<4, false, kMinimum, kSubBytes, 32>{});
    case 5: return visit(SuperKind<5, false, kMinimum, kSubBytes, 32>{});
    default: return visit(SuperKind<6, false, kFixed, kSubBytes, 16>{});
  }
}

// What a super-block's header says of all its groups; the minimum is one to add.
template <int zero>
CRUMB_INLINE Header read_super_header(const uint8_t* block) {
  Header header = read_header(block, zero);
  if constexpr (zero == kMinimum) header.minimum = header.minimum * all_floats(-1.0f);
  return header;
}

// The whole numbers of a group's 16 rows, `sub` at those of its super-block: what multiplies the
// scale, and what multiplies a sum of activations: the minimum's, or with a fixed zero the same.
template <class Kind>
CRUMB_INLINE Ints sub_scale_of(const uint8_t* sub, int64_t group) {
  if constexpr (Kind::sub == kSubDigits) return low_digit(widen_bytes(sub + 16 * group));
  if constexpr (Kind::sub == kSubPairs)
    return signed_digit(widen_bytes(sub + 16 * (group / 2)), int(group % 2));
  if constexpr (Kind::sub == kSubQuads) {
    const uint8_t* four = sub + 3 * 16 * (group / 4);
    const int place = int(group % 4);
    return signed_six(widen_bytes(four + 16 * (place / 2)), place % 2, widen_bytes(four + 32), place);
  }
  return widen_signed_bytes(sub + 16 * group);
}
template <class Kind>
CRUMB_INLINE Ints sub_term_of(const uint8_t* sub, int64_t group) {
  if constexpr (Kind::zero == kFixed) return sub_scale_of<Kind>(sub, group);
  if constexpr (Kind::sub == kSubDigits) return shift_right<4>(widen_bytes(sub + 16 * group));
  return widen_bytes(sub + 16 * (kSuperInputs / Kind::width + group));
}
// Terms of a group and the next as pairs of 16-bit integers.
template <class Kind>
CRUMB_INLINE Ints sub_terms_of(const uint8_t* sub, int64_t group) {
  return make_pairs(sub_term_of<Kind>(sub, group), sub_term_of<Kind>(sub, group + 1));
}

// The header of one group of a super-block, which is at `block`.
inline Header header_of_group(const uint8_t* block, const TileMatrix& m, int64_t group) {
  Header header;
  with_super_kind(m, [&](auto kind) {
    using Kind = decltype(kind);
    const uint8_t* sub = block + own_header_bytes(Kind::zero);
    header = read_super_header<Kind::zero>(block);
    header.scale = header.scale * to_floats(sub_scale_of<Kind>(sub, group));
    if constexpr (Kind::zero == kMinimum)
      header.minimum = header.minimum * to_floats(sub_term_of<Kind>(sub, group));
  });
  return header;
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

// Whether what is multiplied has a zero that is not 0: levels of a table lie 128 higher.
template <class Kind>
constexpr bool has_zero() {
  return Kind::zero == kFixed && !(Kind::table && kUnsignedByteZero == 128);
}
// Whether sums of activations are multiplied by `terms`: by sub-minima, or by sub-scales where 16-bit
// sums are multiplied, from which a fixed zero cannot be taken before.
template <class Kind>
constexpr bool has_terms() {
  return Kind::zero == kMinimum || (has_zero<Kind>() && kMultipliesPairs);
}
// Where it can, a group begins with what its zero takes.
template <class Kind>
constexpr bool has_shifts() {
  return has_zero<Kind>() && !kMultipliesPairs;
}

// Whether codes are multiplied by their sub-scales when they are unpacked.
template <class Kind>
constexpr bool scaled_codes() {
  return kScaledCodes && Kind::bits <= 3;
}

// What stands for zero before: of codes, or of levels, which are 128 higher.
template <class Kind>
constexpr int32_t level_zero() {
  return Kind::zero != kFixed ? 0 : Kind::table ? 128 : 1 << (Kind::bits - 1);
}

// And then: -4..3 times -32..31 is -124..128, 0..3 times 0..15 is not negative, and the levels of a
// table, -15..15, times -8..7 are -120..120.
template <class Kind>
constexpr int32_t scaled_zero() {
  return Kind::zero != kFixed ? 0 : Kind::table ? 128 : 124;
}

// Without a sign, so that a product beyond 16 bits wraps.
typedef uint16_t WrappingPart __attribute__((vector_size(sizeof(ShortPart))));

// Codes minus the fixed zero times a number of each row, plus that of the scaled: two bytes in one
// product of 16 bits, exact because both results are within 0 to 255.
template <class Kind>
CRUMB_INLINE Codes multiply_codes(Codes codes, Ints by) {
  constexpr int32_t kZero = level_zero<Kind>();
  const Ints added = (all_ints(scaled_zero<Kind>()) - by * all_ints(kZero)) * all_ints(257);
  const Ints twice = make_pairs(by, by), plus = make_pairs(added, added);
  EACH_PART(codes.part[i] =
                (CodePart)((WrappingPart)codes.part[i] * (WrappingPart)twice.part[i] +
                           (WrappingPart)plus.part[i]));
  return codes;
}

// What 128 inputs add to an output. `zero`: what is still to be taken off by terms; `by`: the scale
// of the activations.
template <class Kind>
CRUMB_INLINE Floats join_super(Floats out, Ints sum, Ints term, int32_t zero, const Header& header,
                               float by) {
  if constexpr (Kind::zero == kFixed)
    return fma(to_floats(zero ? sum - term * all_ints(zero) : sum) * header.scale, by, out);
  return fma(fma(to_floats(sum), header.scale, to_floats(term) * header.minimum), by, out);
}

constexpr int64_t kBlockChunks = kBlockInputs / kChunkInputs;
constexpr int64_t kSuperBlocks = kSuperInputs / kBlockInputs;

// Chunks of the block of 128 inputs that begins here.
template <class Kind>
CRUMB_INLINE int64_t chunks_of_block(const TileMatrix& m, int64_t first) {
  const int64_t left = m.columns - first;
  return Kind::ragged && left < kBlockInputs ? chunk_count(left) : kBlockChunks;
}

// Whether odd slices stay raised.
template <class Kind>
constexpr bool raises(int tokens) {
  return kRaisedCodes && tokens == 1 && !Kind::table && raised_by(Kind::bits) > 0;
}

// What the zero of scaled codes takes from the sum of some groups.
template <class Kind>
CRUMB_INLINE int32_t zero_of_groups(const int32_t* totals, int64_t groups) {
  int32_t total = 0;
  for (int64_t g = 0; g < groups; ++g) total += totals[g];
  return -scaled_zero<Kind>() * total;
}

// Whether codes are multiplied by their sub-scales before any token: for one or two it is no gain.
template <class Kind>
constexpr bool scales_first(int tokens) {
  return scaled_codes<Kind>() && tokens >= 4;
}

// One group of a chunk, `count` slices from `first` on, joins the sums of some tokens.
template <class Kind, int first, int count, int tokens>
CRUMB_INLINE void fused_super_group(const MatmulJob& job, Ints (&sum)[tokens][1],
                                    const Codes (&slices)[8], const int8_t* x, Ints by,
                                    const int32_t* total, int32_t zero) {
  constexpr int kChains = tokens == 1 ? 2 : 1;
  constexpr int kUp = raises<Kind>(tokens) ? raised_by(Kind::bits) : 0;
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) {
    const int32_t shift = has_shifts<Kind>() ? -zero * total[t * job.x.blocks] : 0;
    add_group<Kind::dot_bits, kChains, kUp, first, count>(sum[t][0], slices, x + t * job.x.stride, by,
                                                    all_ints(shift));
  }
}

// The codes of 128 inputs, or of as many as are there, join them. `group`: the first of their
// super-block.
template <class Kind, bool fetch, int tokens>
CRUMB_INLINE void fused_super_sums(const MatmulJob& job, Ints (&sum)[tokens][1],
                                   const uint8_t* at, const int8_t* x, const uint8_t* sub,
                                   int64_t group, const int32_t* total, int32_t zero,
                                   int64_t chunks) {
  constexpr int kSlices = Kind::width / kSliceInputs;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Codes slices[8];
    unpack_chunk<Kind::bits, raises<Kind>(tokens)>(at, slices);
    if constexpr (Kind::table) look_up(slices, job.matrix.table);
    if constexpr (fetch) prefetch_codes<Kind::bits>(at);
    if constexpr (scales_first<Kind>(tokens)) {
#pragma GCC unroll 2
      for (int first = 0; first < 8; first += kSlices) {
        const Ints by = sub_scale_of<Kind>(sub, group++);
#pragma GCC unroll 8
        for (int s = first; s < first + kSlices; ++s) slices[s] = multiply_codes<Kind>(slices[s], by);
      }
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) dot_chunk<8, 1>(sum[t], slices, x + t * job.x.stride);
    } else {
      const Ints by = multiplier(sub_scale_of<Kind>(sub, group++));
      fused_super_group<Kind, 0, kSlices>(job, sum, slices, x, by, total++, zero);
      if constexpr (Kind::width < kChunkInputs) {
        const Ints next = multiplier(sub_scale_of<Kind>(sub, group++));
        fused_super_group<Kind, kSlices, kSlices>(job, sum, slices, x, next, total++, zero);
      }
    }
    at += chunk_bytes(Kind::bits);
    x += kChunkInputs;
  }
}

// `pairs`: of sums of the activations of the token and those behind it.
template <class Kind, int tokens, bool fetch>
CRUMB_INLINE void fused_super_tile(const MatmulJob& job, int64_t tile, int64_t token,
                                   const int32_t* pairs) {
  constexpr int64_t kGroups = kBlockInputs / Kind::width;
  constexpr bool kLeft = has_zero<Kind>() && !has_shifts<Kind>();  // the zero, to the end
  const TileMatrix& m = job.matrix;
  const int32_t zero = common_zero(m, Kind::dot_bits);
  const int64_t scales = scale_count(job.x), all_pairs = job.x.blocks / 2;
  const int8_t* x = job.x.codes + token * job.x.stride;
  const float* scale = job.x.scale + token * scales;
  const int32_t* total = job.x.sum + token * job.x.blocks;
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  Floats out[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) out[t] = all_floats(0.0f);

  for (int64_t first = 0; first < m.columns; first += kSuperInputs) {
    const Header header = read_super_header<Kind::zero>(at);
    const uint8_t* sub = at + own_header_bytes(Kind::zero);
    at += header_bytes(m, m.columns - first);
    for (int64_t b = 0; b < kSuperBlocks && first + b * kBlockInputs < m.columns; ++b) {
      const int64_t group = b * kGroups, chunks = chunks_of_block<Kind>(m, first + b * kBlockInputs);
      const int64_t groups = chunks * kChunkInputs / Kind::width;
      Ints sum[tokens][1], term[tokens];
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) {
        term[t] = all_ints(0);
        sum[t][0] = all_ints(scales_first<Kind>(tokens) && scaled_zero<Kind>() != 0
                                 ? zero_of_groups<Kind>(total + t * job.x.blocks, groups) : 0);
      }
      fused_super_sums<Kind, fetch>(job, sum, at, x, sub, group, total, zero, chunks);
      if constexpr (has_terms<Kind>())
#pragma GCC unroll 4
        for (int64_t k = 0; k < kGroups / 2; ++k) {
          const Ints terms = sub_terms_of<Kind>(sub, group + 2 * k);
#pragma GCC unroll 8
          for (int t = 0; t < tokens; ++t)
            term[t] = add_pair_products(term[t], terms, pairs[t * all_pairs + k]);
        }
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t)
        out[t] = join_super<Kind>(out[t], sum[t][0], term[t], kLeft ? zero : 0, header,
                                  scale[t * scales]);
      at += chunks * chunk_bytes(Kind::bits);
      x += kBlockInputs;
      pairs += kGroups / 2;
      total += kGroups;
      ++scale;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) finish_tile(job, tile, token + t, out[t]);
}
