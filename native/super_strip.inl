// Quantized matrices of super-blocks times int8 activations of many tokens. In: MatmulJob. Out: its
// rows of `out`. One or two tiles are unpacked once, codes to bytes and sub-scales to integers, and
// multiplied with all tokens. Where kScaledCodes, codes of 2 and 3 bits are multiplied by their
// sub-scales at once, so that 128 inputs are one sum. The bits are those of super_matmul.inl.

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
      : codes(job.scratch), bytes(kTileRows * padded_to(job.matrix.columns, kChunkInputs)),
        numbers(reinterpret_cast<int32_t*>(codes + 2 * bytes)),
        of_block(kTileRows * (kBlockInputs / job.matrix.group_width * 3 / 2 + 2)),
        of_tile(of_block * scale_count(job.x)), shift(numbers + 2 * of_tile),
        pairs(shift + kStripTokens * job.x.blocks) {}
};

// One chunk's codes as bytes, its groups' multipliers.
template <class Kind>
CRUMB_INLINE void unpack_super_chunk(const TileMatrix& m, const uint8_t* at, const uint8_t* sub,
                                     int64_t group, uint8_t* to, int32_t* numbers) {
  constexpr int kGroups = kChunkInputs / Kind::width, kSlicesOfGroup = Kind::width / kSliceInputs;
  Codes slices[8];
  unpack_chunk<Kind::bits>(at, slices);
  if constexpr (Kind::table) look_up(slices, m.table);
#pragma GCC unroll 2
  for (int k = 0; k < kGroups; ++k) {
    const Ints by = sub_scale_of<Kind>(sub, group + k);
    store_ints(numbers + kTileRows * k, multiplier(by));
    if constexpr (scaled_codes<Kind>())
#pragma GCC unroll 8
      for (int s = kSlicesOfGroup * k; s < kSlicesOfGroup * (k + 1); ++s)
        slices[s] = multiply_codes<Kind>(slices[s], by);
  }
#pragma GCC unroll 8
  for (int s = 0; s < 8; ++s) store_codes(to + 64 * s, slices[s]);
}

template <class Kind>
void unpack_super_tile(const MatmulJob& job, int64_t tile, uint8_t* to, int32_t* numbers) {
  constexpr int64_t kGroupsOfChunk = kChunkInputs / Kind::width;
  constexpr int64_t kGroups = kBlockInputs / Kind::width;
  const TileMatrix& m = job.matrix;
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  for (int64_t first = 0; first < m.columns; first += kSuperInputs) {
    const Header header = read_super_header<Kind::zero>(at);
    const uint8_t* sub = at + own_header_bytes(Kind::zero);
    at += header_bytes(m, m.columns - first);
    for (int64_t b = 0; b < kSuperBlocks && first + b * kBlockInputs < m.columns; ++b) {
      int64_t group = b * kGroups;
      int32_t* terms = numbers + kTileRows * kGroups;
      if constexpr (has_terms<Kind>())
        for (int64_t k = 0; k < kGroups / 2; ++k)
          store_ints(terms + kTileRows * k, sub_terms_of<Kind>(sub, group + 2 * k));
      terms += kTileRows * kGroups / 2;
      store_ints(terms, same_bits<Ints>(header.scale));
      if (Kind::zero == kMinimum) store_ints(terms + kTileRows, same_bits<Ints>(header.minimum));
      for (int64_t chunk = chunks_of_block<Kind>(m, first + b * kBlockInputs); chunk > 0; --chunk) {
        unpack_super_chunk<Kind>(m, at, sub, group, to, numbers);
        group += kGroupsOfChunk;
        numbers += kGroupsOfChunk * kTileRows;
        at += chunk_bytes(Kind::bits);
        to += kChunkInputs * kTileRows;
      }
      numbers = terms + 2 * kTileRows;
    }
  }
}

// So many chunks of unpacked tiles times some tokens.
template <class Kind, int tiles, int tokens>
CRUMB_INLINE void super_strip_sums(Ints (&sum)[tiles][tokens], const SuperStrip& strip,
                                   const uint8_t* codes, const int8_t* x, int64_t stride,
                                   const int32_t* numbers, const int32_t* shift, int64_t shifts,
                                   int64_t chunks) {
  constexpr int kSlices = Kind::width / kSliceInputs;
  for (int64_t input = 0; input < chunks * kChunkInputs; input += Kind::width) {
    Ints by[tiles];
#pragma GCC unroll 2
    for (int k = 0; k < tiles; ++k) by[k] = load_ints(numbers + k * strip.of_tile);
    add_strip_group<Kind::dot_bits, kSlices>(sum, codes, strip.bytes, x, stride, by,
                                             has_shifts<Kind>() ? shift++ : nullptr, shifts);
    numbers += kTileRows;
    codes += kTileRows * Kind::width;
    x += Kind::width;
  }
}

// What a zero takes from sums of `groups` groups, fewer at the end of a row, of some tokens.
inline void shift_sums(const MatmulJob& job, int64_t token, int64_t tokens, int64_t groups,
                       int32_t zero, int32_t* shift) {
  const int32_t* sum = job.x.sum + token * job.x.blocks;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t first = 0; first < job.x.blocks; first += groups) {
      int32_t total = 0;
      for (int64_t g = 0; g < groups && first + g < job.x.blocks; ++g) total += *sum++;
      *shift++ = -zero * total;
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

template <class Kind, int tiles, int tokens>
void super_strip_block(const MatmulJob& job, int64_t tile, int64_t token) {
  constexpr bool kScaled = scaled_codes<Kind>();
  constexpr int64_t kGroups = kBlockInputs / Kind::width, kPairs = kGroups / 2;
  constexpr int64_t kShifts = kScaled ? 1 : kGroups;  // of a block
  const SuperStrip strip(job);
  const int32_t zero = kScaled ? scaled_zero<Kind>() : common_zero(job.matrix, Kind::dot_bits);
  constexpr bool kTerms = Kind::zero == kMinimum || (!kScaled && has_terms<Kind>());
  constexpr bool kShifted = kScaled ? scaled_zero<Kind>() != 0 : has_shifts<Kind>();
  const int64_t shifts = kScaled ? scale_count(job.x) : job.x.blocks;  // of a token
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
        sum[k][t] = all_ints(kScaled && kShifted ? shift[t * shifts] : 0);
    const int64_t chunks = chunks_of_block<Kind>(job.matrix, block * kBlockInputs);
    if constexpr (kScaled)
      dot_strip<8, 8>(sum, codes, strip.bytes, x, job.x.stride, chunks);
    else
      super_strip_sums<Kind>(sum, strip, codes, x, job.x.stride, numbers, shift, shifts, chunks);
#pragma GCC unroll 2
    for (int k = 0; k < tiles; ++k) {
      const int32_t* terms = numbers + k * strip.of_tile + kTileRows * kGroups;
      const Header header{same_bits<Floats>(load_ints(terms + kTileRows * kPairs)),
                          same_bits<Floats>(load_ints(terms + kTileRows * (kPairs + 1))), {}};
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) {
        const Ints term = kTerms ? multiply_terms<kPairs>(terms, pairs + t * all_pairs) : all_ints(0);
        out[k][t] = join_super<Kind>(out[k][t], sum[k][t], term, kShifted ? 0 : zero, header,
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
