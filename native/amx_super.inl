// Super-blocks times int8 activations on AMX tiles. In: MatmulJob. Out: its rows of `out`.
// Codes are multiplied by their sub-scales when they are unpacked, so that 128 inputs are one sum.
// Products of 2 and 3 bits are one byte, and two tiles are multiplied together; those of more bits
// are two digits, and a tile's two planes of digits take the places of two tiles.
// The bits are those of super_matmul.inl.

constexpr int kDigitBits = 8;  // of a product of signed bytes: the lower within -128..127

template <class Kind>
constexpr bool has_digits() {
  return !scaled_codes<Kind>();
}

// What one tile's super-block has beside its codes.
template <int pairs>
struct SuperNumbers {
  Floats scale, minimum;
  Ints terms[kSuperBlocks][pairs];
};

// Codes minus their zero times a number of each row, as the digits of the products.
template <class Kind>
CRUMB_INLINE void multiply_to_digits(Codes codes, Ints by, Codes& low, Codes& high) {
  constexpr int kZero = level_zero<Kind>();
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

// Inputs of a super-block that begins here, in whole steps of 64.
template <class Kind>
CRUMB_INLINE int64_t inputs_of_super(const TileMatrix& m, int64_t first) {
  const int64_t left = m.columns - first;
  return Kind::ragged && left < kSuperInputs ? padded_to(left, 64) : kSuperInputs;
}

// A super-block's products as bytes, `plane` bytes between their digits. `left`: the inputs of the
// row from its first on; behind them come zeros, to a whole step.
template <class Kind>
void unpack_products(const TileMatrix& m, int64_t left, const uint8_t* block, uint8_t* to,
                     int64_t plane) {
  constexpr int kSlicesOfGroup = Kind::width / kSliceInputs;
  const uint8_t* sub = block + own_header_bytes(Kind::zero);
  const uint8_t* at = block + header_bytes(m, left);
  const int64_t chunks = Kind::ragged && left < kSuperInputs ? chunk_count(left)
                                                             : kSuperInputs / kChunkInputs;
  int64_t group = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Codes slices[8];
    unpack_chunk<Kind::bits>(at, slices);
    if constexpr (Kind::table) look_up(slices, m.table);
    prefetch_codes<Kind::bits>(at);
#pragma GCC unroll 2
    for (int first = 0; first < 8; first += kSlicesOfGroup, ++group) {
      const Ints by = sub_scale_of<Kind>(sub, group);
#pragma GCC unroll 8
      for (int s = first; s < first + kSlicesOfGroup; ++s) {
        if constexpr (has_digits<Kind>()) {
          Codes low, high;
          multiply_to_digits<Kind>(slices[s], by, low, high);
          store_codes(to + 64 * s, low);
          store_codes(to + plane + 64 * s, high);
        } else {
          store_codes(to + 64 * s, multiply_codes<Kind>(slices[s], by));
        }
      }
    }
    at += chunk_bytes(Kind::bits);
    to += 8 * 64;
  }
  if (chunks % 2 == 0) return;
  __builtin_memset(to, 0, 8 * 64);
  if constexpr (has_digits<Kind>()) __builtin_memset(to + plane, 0, 8 * 64);
}

// Tiles first_tile to last_tile of a job, one or two at a time.
template <class Kind>
class SuperTiles {
 public:
  explicit SuperTiles(const MatmulJob& job)
      : job_(job), blocks_(block_count(kSuperInputs, job.matrix.columns)), scales_(scale_count(job.x)),
        once_(job.tokens <= kTokensAtOnce),
        out_(reinterpret_cast<float*>(job.scratch)),
        sums_(reinterpret_cast<int32_t*>(out_ + kSumsOfGroup)),
        numbers_(reinterpret_cast<Numbers*>(sums_ + kSuperBlocks * kSumsOfGroup)),
        pairs_(reinterpret_cast<int32_t*>(numbers_ + 2 * blocks_)),
        shift_(pairs_ + (kHasTerms ? kTokensAtOnce * scales_ * kPairs : 0)),
        codes_(job.scratch + kAmxScratch + padded_to(beside_codes(), 64)),
        plane_(kTileRows * (once_ ? kSuperInputs : padded_to(job.matrix.columns, 64))) {}

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
  static constexpr bool kDigits = has_digits<Kind>();
  static constexpr bool kHasTerms = Kind::zero == kMinimum;
  static constexpr int32_t kZero = kDigits ? 0 : scaled_zero<Kind>();
  static constexpr int64_t kGroups = kBlockInputs / Kind::width, kPairs = kGroups / 2;
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
      const Header header = read_super_header<Kind::zero>(at);
      Numbers& numbers = numbers_[k * blocks_ + block];
      numbers.scale = header.scale;
      if constexpr (kHasTerms) {
        numbers.minimum = header.minimum;
        for (int64_t b = 0; b < kSuperBlocks; ++b)
          for (int64_t pair = 0; pair < kPairs; ++pair)
            numbers.terms[b][pair] =
                sub_terms_of<Kind>(at + own_header_bytes(Kind::zero), b * kGroups + 2 * pair);
      }
      unpack_products<Kind>(m, m.columns - block * kSuperInputs, at, to + k * plane_, plane_);
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
    const int64_t steps = inputs_of_super<Kind>(job_.matrix, block * kSuperInputs) / 64;
    const int8_t* x = tokens_at(job_.x.codes + token * stride, block * kSuperInputs);
    for (int64_t step = 0; step < steps; step += 2) {  // a block of 128 inputs, or half of one
      multiply_step<kDigits, two_tokens, two_tiles, true>(x, stride, codes, plane_,
                                                          step ? sums_ : nullptr);
      if (step + 1 < steps)
        multiply_step<kDigits, two_tokens, two_tiles, false>(
            x + kTokensTogether * kTokenBytes, stride, codes + 64 * kTileRows, plane_, nullptr);
      x += kBlockInputs / 64 * kTokensTogether * kTokenBytes;
      codes += kBlockInputs * kTileRows;
    }
    store_sums<two_tokens, two_tiles>(steps > 2 ? sums_ + kSumsOfGroup : sums_);
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
    const bool half = Kind::ragged && scales_ - block * kSuperBlocks == 1;
    for (int64_t t = 0; t < tokens; ++t) {
      Floats out = load_floats(to + 16 * t);
#pragma GCC unroll 2
      for (int64_t b = 0; b < kSuperBlocks - half; ++b) {
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
        out = join_super<Kind>(out, sum, term, 0, header, by[t * scales_ + b]);
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
  with_super_kind(job.matrix, [&](auto kind) { SuperTiles<decltype(kind)>(job).run(); });
}
