// Quantized matrices of super-blocks times int8 activations of many tokens. In: MatmulJob. Out: its
// rows of `out`. One or two tiles are unpacked once, codes to bytes and sub-scales to integers, and
// multiplied with all tokens. Where kScaledCodes, codes of 2 and 3 bits are multiplied by their
// sub-scales at once, so that 128 inputs are one sum. The bits are those of super_matmul.inl.

// Whether codes are multiplied by their sub-scales when they are unpacked.
constexpr bool scaled_codes(int bits, bool table) { return kScaledCodes && !table && bits <= 3; }

// What stands for zero then: -4..3 times -32..31 is -124..128, 0..3 times 0..15 is not negative.
constexpr int32_t scaled_zero(int bits) { return bits == 3 ? 124 : 0; }

// What a tile has beside its codes in scratch. A block of 128 inputs: the multipliers of its groups,
// their terms in pairs, its scale and minimum as floats.
struct SuperStrip {
  uint8_t* codes;
  int64_t bytes;  // of a tile's codes
  int32_t* numbers;
  int64_t of_block, of_tile;  // numbers
  int32_t* shift;  // (tokens, groups, or of scaled codes blocks): what a zero takes from a sum
  int32_t* pairs;  // (tokens, groups / 2): sums of activations
  explicit SuperStrip(const MatmulJob& job)
      : codes(job.scratch), bytes(kTileRows * job.matrix.columns),
        numbers(reinterpret_cast<int32_t*>(codes + 2 * bytes)),
        of_block(kTileRows * (kBlockInputs / job.matrix.group_width * 3 / 2 + 2)),
        of_tile(of_block * scale_count(job.x)), shift(numbers + 2 * of_tile),
        pairs(shift + kStripTokens * job.x.blocks) {}
};

// Without a sign, so that a product beyond 16 bits wraps.
typedef uint16_t WrappingPart __attribute__((vector_size(sizeof(ShortPart))));

// Codes minus the fixed zero times a number of each row, plus that of the scaled: two bytes in one
// product of 16 bits, exact because both results are within 0 to 255.
template <int bits>
CRUMB_INLINE Codes multiply_codes(Codes codes, Ints by) {
  constexpr int32_t kZero = bits == 3 ? 1 << (bits - 1) : 0;
  const Ints added = (all_ints(scaled_zero(bits)) - by * all_ints(kZero)) * all_ints(257);
  const Ints twice = make_pairs(by, by), plus = make_pairs(added, added);
  EACH_PART(codes.part[i] =
                (CodePart)((WrappingPart)codes.part[i] * (WrappingPart)twice.part[i] +
                           (WrappingPart)plus.part[i]));
  return codes;
}

// One chunk's codes as bytes, its groups' multipliers.
template <int bits, bool table, int width>
CRUMB_INLINE void unpack_super_chunk(const TileMatrix& m, const uint8_t* at, const uint8_t* sub,
                                     int64_t group, uint8_t* to, int32_t* numbers) {
  constexpr int kGroups = kChunkInputs / width, kSlicesOfGroup = width / kSliceInputs;
  Codes slices[8];
  unpack_chunk<bits>(at, slices);
  if constexpr (table) look_up(slices, m.table);
#pragma GCC unroll 2
  for (int k = 0; k < kGroups; ++k) {
    const Ints by = sub_scale_of<super_zero(bits, table), width>(sub, group + k);
    store_ints(numbers + kTileRows * k, multiplier(by));
    if constexpr (scaled_codes(bits, table))
#pragma GCC unroll 8
      for (int s = kSlicesOfGroup * k; s < kSlicesOfGroup * (k + 1); ++s)
        slices[s] = multiply_codes<bits>(slices[s], by);
  }
#pragma GCC unroll 8
  for (int s = 0; s < 8; ++s) store_codes(to + 64 * s, slices[s]);
}

template <int bits, bool table, int width>
void unpack_super_tile(const MatmulJob& job, int64_t tile, uint8_t* to, int32_t* numbers) {
  constexpr int kKind = super_zero(bits, table), kGroupsOfChunk = kChunkInputs / width;
  constexpr int64_t kGroups = kBlockInputs / width;
  const TileMatrix& m = job.matrix;
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  for (int64_t first = 0; first < m.columns; first += kSuperInputs) {
    const Header header = read_super_header<kKind>(at);
    const uint8_t* sub = at + own_header_bytes(kKind);
    at += header_bytes(m);
    for (int64_t group = 0; group < kSuperBlocks * kGroups;) {
      int32_t* terms = numbers + kTileRows * kGroups;
      for (int64_t k = 0; k < kGroups; k += 2, terms += kTileRows)
        store_ints(terms, sub_terms_of<kKind, width>(sub, group + k));
      store_ints(terms, same_bits<Ints>(header.scale));
      if (kKind == kMinimum) store_ints(terms + kTileRows, same_bits<Ints>(header.minimum));
      for (int64_t chunk = 0; chunk < kBlockChunks; ++chunk) {
        unpack_super_chunk<bits, table, width>(m, at, sub, group, to, numbers);
        group += kGroupsOfChunk;
        numbers += kGroupsOfChunk * kTileRows;
        at += chunk_bytes(bits);
        to += kChunkInputs * kTileRows;
      }
      numbers = terms + 2 * kTileRows;
    }
  }
}

// 128 inputs of unpacked tiles times some tokens.
template <int bits, bool table, int width, int tiles, int tokens>
CRUMB_INLINE void super_strip_sums(Ints (&sum)[tiles][tokens], const SuperStrip& strip,
                                   const uint8_t* codes, const int8_t* x, int64_t stride,
                                   const int32_t* numbers, const int32_t* shift, int64_t shifts) {
  constexpr int kSlices = width / kSliceInputs, kDotBits = table ? 8 : bits;
  for (int64_t input = 0; input < kBlockInputs; input += width) {
    Ints by[tiles];
#pragma GCC unroll 2
    for (int k = 0; k < tiles; ++k) by[k] = load_ints(numbers + k * strip.of_tile);
    add_strip_group<kDotBits, kSlices>(sum, codes, strip.bytes, x, stride, by,
                                       has_shifts<bits, table>() ? shift++ : nullptr, shifts);
    numbers += kTileRows;
    codes += kTileRows * width;
    x += width;
  }
}

// What a zero takes from sums of `groups` groups of some tokens.
inline void shift_sums(const MatmulJob& job, int64_t token, int64_t tokens, int64_t groups,
                       int32_t zero, int32_t* shift) {
  const int32_t* sum = job.x.sum + token * job.x.blocks;
  for (int64_t k = 0; k < tokens * job.x.blocks / groups; ++k, sum += groups) {
    int32_t total = 0;
    for (int64_t g = 0; g < groups; ++g) total += sum[g];
    shift[k] = -zero * total;
  }
}

// Terms times sums of activations, of 128 inputs.
template <int pairs>
CRUMB_INLINE Ints multiply_terms(const int32_t* terms, const int32_t* sums) {
  Ints sum = all_ints(0);
#pragma GCC unroll 4
  for (int p = 0; p < pairs; ++p)
    sum = add_pair_products(sum, load_ints(terms + kTileRows * p), sums[p]);
  return sum;
}

template <int bits, bool table, int width, int tiles, int tokens>
void super_strip_block(const MatmulJob& job, int64_t tile, int64_t token) {
  constexpr int kKind = super_zero(bits, table);
  constexpr bool kScaled = scaled_codes(bits, table);
  constexpr int64_t kGroups = kBlockInputs / width, kPairs = kGroups / 2;
  constexpr int64_t kShifts = kScaled ? 1 : kGroups;  // of a block
  const SuperStrip strip(job);
  const int32_t zero = kScaled ? scaled_zero(bits) : common_zero(job.matrix, table ? 8 : bits);
  constexpr bool kTerms = kKind == kMinimum || (!kScaled && has_terms<bits, table>());
  constexpr bool kShifted = kScaled ? scaled_zero(bits) != 0 : has_shifts<bits, table>();
  const int64_t scales = scale_count(job.x), all_pairs = scales * kPairs;
  const int8_t* x = job.x.codes + token * job.x.stride;
  const float* scale = job.x.scale + token * scales;
  const int32_t *numbers = strip.numbers, *pairs = strip.pairs, *shift = strip.shift;
  const uint8_t* codes = strip.codes;
  if (kTerms) pair_sums(job.x, token, tokens, strip.pairs);
  if (kShifted) shift_sums(job, token, tokens, kGroups / kShifts, zero, strip.shift);
  Floats out[tiles][tokens];
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) out[k][t] = all_floats(0.0f);

  for (int64_t block = 0; block < scales; ++block) {
    Ints sum[tiles][tokens];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 2
      for (int k = 0; k < tiles; ++k)
        sum[k][t] = all_ints(kScaled && kShifted ? shift[t * scales] : 0);
    if constexpr (kScaled)
      dot_strip<8, 8>(sum, codes, strip.bytes, x, job.x.stride, kBlockChunks);
    else
      super_strip_sums<bits, table, width>(sum, strip, codes, x, job.x.stride, numbers, shift,
                                           job.x.blocks);
#pragma GCC unroll 2
    for (int k = 0; k < tiles; ++k) {
      const int32_t* terms = numbers + k * strip.of_tile + kTileRows * kGroups;
      const Header header{same_bits<Floats>(load_ints(terms + kTileRows * kPairs)),
                          same_bits<Floats>(load_ints(terms + kTileRows * (kPairs + 1))), {}};
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) {
        const Ints term = kTerms ? multiply_terms<kPairs>(terms, pairs + t * all_pairs) : all_ints(0);
        out[k][t] = join_super<kKind>(out[k][t], sum[k][t], term, kShifted ? 0 : zero, header,
                                      scale[t * scales]);
      }
    }
    codes += kTileRows * kBlockInputs;
    x += kBlockInputs;
    numbers += strip.of_block;
    pairs += kPairs;
    shift += kShifts;
    ++scale;
  }
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) finish_tile(job, tile + k, token + t, out[k][t]);
}
