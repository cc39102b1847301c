// Super-blocks times int8 activations on AMX tiles. In: MatmulJob. Out: its rows of `out`.
// Codes are multiplied by their sub-scales when they are unpacked, so that 128 inputs are one sum.
// Products of 2 and 3 bits are one byte, and two tiles are multiplied together; those of more bits
// are two digits, and a tile's two planes of digits take the places of two tiles.
// The bits are those of super_matmul.inl.

constexpr int kDigitBits = 8;  // of a product of signed bytes: the lower within -128..127

template <int bits, bool table>
constexpr bool has_digits() {
  return !scaled_codes(bits, table);
}

// What one tile's super-block has beside its codes.
template <int pairs>
struct SuperNumbers {
  Floats scale, minimum;
  Ints terms[kSuperBlocks][pairs];
};

// Codes minus their zero times a number of each row, as the digits of the products.
template <int bits, bool table>
CRUMB_INLINE void multiply_to_digits(Codes codes, Ints by, Codes& low, Codes& high) {
  constexpr int kZero = super_zero(bits, table) != kFixed ? 0 : table ? 128 : 1 << (bits - 1);
  constexpr int kHalf = 1 << (kDigitBits - 1);  // so that the lower digit has a sign
  const Ints taken = all_ints(kHalf) - by * all_ints(kZero);
  const ShortPart twice = (ShortPart)make_pairs(by, by).part[0];
  const ShortPart plus = (ShortPart)make_pairs(taken, taken).part[0];
  const CodePart even_codes = codes.part[0] & 0x00ff00ffu;
  const CodePart odd_codes = codes.part[0] >> 8 & 0x00ff00ffu;
  const CodePart even = (CodePart)((ShortPart)even_codes * twice + plus);
  const CodePart odd = (CodePart)((ShortPart)odd_codes * twice + plus);
  low.part[0] = ((even & 0x00ff00ffu) | (odd & 0x00ff00ffu) << 8) ^ 0x80808080u;
  high.part[0] = (even >> 8 & 0x00ff00ffu) | (odd & 0xff00ff00u);
}

// A super-block's products as bytes, `plane` bytes between their digits.
template <int bits, bool table, int width>
void unpack_products(const TileMatrix& m, const uint8_t* block, uint8_t* to, int64_t plane) {
  constexpr int kKind = super_zero(bits, table), kSlicesOfGroup = width / kSliceInputs;
  const uint8_t* sub = block + own_header_bytes(kKind);
  const uint8_t* at = block + header_bytes(m);
  for (int64_t group = 0; group < kSuperInputs / width;) {
    Codes slices[8];
    unpack_chunk<bits>(at, slices);
    if constexpr (table) look_up(slices, m.table);
    prefetch_codes<bits>(at);
#pragma GCC unroll 2
    for (int first = 0; first < 8; first += kSlicesOfGroup, ++group) {
      const Ints by = sub_scale_of<kKind, width>(sub, group);
#pragma GCC unroll 8
      for (int s = first; s < first + kSlicesOfGroup; ++s) {
        if constexpr (has_digits<bits, table>()) {
          Codes low, high;
          multiply_to_digits<bits, table>(slices[s], by, low, high);
          store_codes(to + 64 * s, low);
          store_codes(to + plane + 64 * s, high);
        } else {
          store_codes(to + 64 * s, multiply_codes<bits>(slices[s], by));
        }
      }
    }
    at += chunk_bytes(bits);
    to += 8 * 64;
  }
}

// Tiles first_tile to last_tile of a job, one or two at a time.
template <int bits, bool table, int width>
class SuperTiles {
 public:
  explicit SuperTiles(const MatmulJob& job)
      : job_(job), blocks_(job.matrix.columns / kSuperInputs), scales_(scale_count(job.x)),
        once_(job.tokens <= kTokensAtOnce),
        out_(reinterpret_cast<float*>(job.scratch)),
        sums_(reinterpret_cast<int32_t*>(out_ + kSumsOfGroup)),
        numbers_(reinterpret_cast<Numbers*>(sums_ + kSuperBlocks * kSumsOfGroup)),
        pairs_(reinterpret_cast<int32_t*>(numbers_ + 2 * blocks_)),
        shift_(pairs_ + (kHasTerms ? kTokensAtOnce * scales_ * kPairs : 0)),
        codes_(job.scratch + kAmxScratch + padded_to(beside_codes(), 64)),
        plane_(kTileRows * (once_ ? kSuperInputs : job.matrix.columns)) {}

  void run() {
    shape_tiles(64);
    const int64_t together = kDigits ? 1 : 2;
    for (int64_t tile = job_.first_tile; tile < job_.last_tile; tile += together) {
      const bool two = !kDigits && tile + 1 < job_.last_tile;
      for (int64_t block = 0; block < blocks_ && !once_; ++block)
        unpack(tile, two, block, codes_ + block * kTileRows * kSuperInputs);
      for (int64_t token = 0; token < job_.tokens; token += kTokensAtOnce) {
        const bool more = job_.tokens - token > kTokensTogether;
        if (kDigits || two)
          more ? multiply_tokens<true, true>(tile, token) : multiply_tokens<false, true>(tile, token);
        else
          more ? multiply_tokens<true, false>(tile, token) : multiply_tokens<false, false>(tile, token);
      }
    }
    _tile_release();
  }

 private:
  static constexpr int kKind = super_zero(bits, table);
  static constexpr bool kDigits = has_digits<bits, table>();
  static constexpr bool kHasTerms = kKind == kMinimum;
  static constexpr int32_t kZero = kDigits ? 0 : scaled_zero(bits);
  static constexpr int64_t kGroups = kBlockInputs / width, kPairs = kGroups / 2;
  using Numbers = SuperNumbers<kHasTerms ? kPairs : 1>;

  // Behind kAmxScratch, which outputs and sums do not fill.
  int64_t beside_codes() const {
    return 2 * blocks_ * int64_t(sizeof(Numbers)) +
           4 * kTokensAtOnce * scales_ * ((kHasTerms ? kPairs : 0) + (kZero ? 1 : 0));
  }

  void unpack(int64_t tile, bool two, int64_t block, uint8_t* to) {
    const TileMatrix& m = job_.matrix;
    for (int64_t k = 0; k <= two; ++k) {
      const uint8_t* at = m.tiles + (tile + k) * m.tile_bytes + block_offset(m, block);
      const Header header = read_super_header<kKind>(at);
      Numbers& numbers = numbers_[k * blocks_ + block];
      numbers.scale = header.scale;
      if constexpr (kHasTerms) {
        numbers.minimum = header.minimum;
        for (int64_t b = 0; b < kSuperBlocks; ++b)
          for (int64_t pair = 0; pair < kPairs; ++pair)
            numbers.terms[b][pair] = sub_terms_of<kKind, width>(at + own_header_bytes(kKind),
                                                                b * kGroups + 2 * pair);
      }
      unpack_products<bits, table, width>(m, at, to + k * plane_, plane_);
    }
  }

  template <bool two_tokens, bool two_tiles>
  void multiply_tokens(int64_t tile, int64_t token) {
    constexpr int64_t kTiles = two_tiles && !kDigits ? 2 : 1;
    const int64_t left = job_.tokens - token, tokens = left < kTokensAtOnce ? left : kTokensAtOnce;
    if constexpr (kHasTerms) pair_sums(job_.x, token, tokens, pairs_);
    if constexpr (kZero != 0) shift_sums(job_, token, tokens, kGroups, kZero, shift_);
    for (int64_t k = 0; k < kSumsOfGroup; k += kTileRows) store_floats(out_ + k, all_floats(0.0f));
    for (int64_t block = 0; block < blocks_; ++block) {
      uint8_t* codes = codes_ + (once_ ? 0 : block * kTileRows * kSuperInputs);
      if (once_) unpack(tile, kTiles == 2, block, codes);
      multiply_block<two_tokens, two_tiles>(token, block, codes);
      for (int64_t k = 0; k < kTiles; ++k) join_block(k, token, tokens, block);
    }
    for (int64_t k = 0; k < kTiles; ++k)
      for (int64_t t = 0; t < tokens; ++t)
        finish_tile(job_, tile + k, token + t, load_floats(out_ + k * kSumsOfGroup / 2 + 16 * t));
  }

  template <bool two_tokens, bool two_tiles>
  void multiply_block(int64_t token, int64_t block, const uint8_t* codes) {
    const int64_t stride = job_.x.stride;
    const int8_t* x = tokens_at(job_.x.codes + token * stride, block * kSuperInputs);
    for (int64_t b = 0; b < kSuperBlocks; ++b) {
      multiply_step<kDigits, two_tokens, two_tiles, true>(x, stride, codes, plane_,
                                                          b ? sums_ : nullptr);
      multiply_step<kDigits, two_tokens, two_tiles, false>(
          x + kTokensTogether * kTokenBytes, stride, codes + 64 * kTileRows, plane_, nullptr);
      x += kBlockInputs / 64 * kTokensTogether * kTokenBytes;
      codes += kBlockInputs * kTileRows;
    }
    store_sums<two_tokens, two_tiles>(sums_ + kSumsOfGroup);
  }

  // A super-block's sums of tile k join its outputs.
  void join_block(int64_t k, int64_t token, int64_t tokens, int64_t block) {
    const Numbers& numbers = numbers_[k * blocks_ + block];
    const int32_t* sums = sums_ + k * kSumsOfGroup / 2;
    const float* by = job_.x.scale + token * scales_ + block * kSuperBlocks;
    const int32_t* pairs = pairs_ + block * kSuperBlocks * kPairs;
    const int32_t* shift = shift_ + block * kSuperBlocks;
    float* to = out_ + k * kSumsOfGroup / 2;
    const Header header{numbers.scale, kHasTerms ? numbers.minimum : numbers.scale, {}};
    for (int64_t t = 0; t < tokens; ++t) {
      Floats out = load_floats(to + 16 * t);
#pragma GCC unroll 2
      for (int64_t b = 0; b < kSuperBlocks; ++b) {
        Ints sum = load_ints(sums + b * kSumsOfGroup + 16 * t), term = all_ints(0);
        if constexpr (kDigits) {
          const Ints high = load_ints(sums + b * kSumsOfGroup + kSumsOfGroup / 2 + 16 * t);
          sum = sum + shift_left<kDigitBits>(high);
        }
        if constexpr (kZero != 0) sum = sum + all_ints(shift[t * scales_ + b]);
        if constexpr (kHasTerms)
#pragma GCC unroll 4
          for (int64_t pair = 0; pair < kPairs; ++pair)
            term = add_pair_products(term, numbers.terms[b][pair],
                                     pairs[t * scales_ * kPairs + b * kPairs + pair]);
        out = join_super<kKind>(out, sum, term, 0, header, by[t * scales_ + b]);
      }
      store_floats(to + 16 * t, out);
    }
  }

  const MatmulJob& job_;
  const int64_t blocks_, scales_;  // super-blocks of a row, blocks of activations
  const bool once_;                // tokens pass once: a super-block is unpacked when it is needed
  float* out_;                     // (tile, 32 tokens, 16 rows)
  int32_t* sums_;                  // (2 blocks of 128 inputs, tile or digit, 32 tokens, 16 rows)
  Numbers* numbers_;               // (tile, super-blocks)
  int32_t* pairs_;                 // (tokens, scales, pairs): sums of activations of two groups
  int32_t* shift_;                 // (tokens, scales): what the zero of scaled codes takes
  uint8_t* codes_;                 // (tile or digit, plane)
  const int64_t plane_;            // bytes
};

void amx_super_matmul(const MatmulJob& job) {
  if (job.matrix.table) return SuperTiles<4, true, 32>(job).run();
  switch (job.matrix.bits) {
    case 2: return SuperTiles<2, false, 16>(job).run();
    case 3: return SuperTiles<3, false, 16>(job).run();
    case 4: return SuperTiles<4, false, 32>(job).run();
    case 5: return SuperTiles<5, false, 32>(job).run();
    default: return SuperTiles<6, false, 16>(job).run();
  }
}
