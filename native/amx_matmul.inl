// Quantized matrices times int8 activations on AMX tiles. In: MatmulJob. Out: its rows of `out`.
// The tile layout's slices are rows of AMX's second operand as they lie once unpacked to signed
// bytes: 16 rows of the matrix x 64 inputs against 16 tokens. Sums and their order are those of
// tile_matmul.inl, so the bits are too. Few tokens go there, super-blocks to amx_super.inl.

constexpr int64_t kAmxTokens = 12;  // fewer are faster in vector registers

// Inputs that one instruction multiplies.
inline int64_t inputs_at_once(const TileMatrix& m) { return m.group_width == 32 ? 32 : 64; }

// Where the tile's block lies that has this block of activations.
inline const uint8_t* header_of(const TileMatrix& m, int64_t tile, int64_t block) {
  const int64_t number = m.group_width > kBlockInputs ? 0 : block;
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

// Unpacked groups of one or two tiles: all of them, or four at a time where tokens are so few that
// they pass once.
struct Strips {
  uint8_t* codes;
  int64_t bytes;   // of one tile
  float* headers;  // (tile, scales and what is beside them, groups, 16)
  int64_t groups, of_block;  // of a row, of a whole block of 128 inputs
  Unpack unpack;   // null: all is unpacked
  Scale scale;
  bool totals;     // whether sums of activations are wanted
};

// Some tokens times one or two tiles, four groups at a time.
template <bool is_signed, bool two_tokens, bool two_tiles>
class TokenBlocks {
 public:
  TokenBlocks(const MatmulJob& job, int64_t tile, int64_t token, const Strips& strips, int64_t step)
      : job_(job), strips_(strips), tile_(tile), token_(token), step_(step),
        tokens_(job.tokens - token < kTokensAtOnce ? job.tokens - token : kTokensAtOnce),
        scales_(scale_count(job.x)),
        out_(reinterpret_cast<float*>(job.scratch)),
        sums_(reinterpret_cast<int32_t*>(out_ + kSumsOfGroup)),
        totals_(reinterpret_cast<float*>(sums_ + kGroupsAtOnce * kSumsOfGroup)),
        codes_(strips.codes) {}

  void run() {
    for (int64_t k = 0; k < kSumsOfGroup; k += kTileRows) store_floats(out_ + k, all_floats(0.0f));
    for (int64_t group = 0; group < job_.x.blocks; group += kGroupsAtOnce) {
      if (strips_.unpack) codes_ = strips_.codes;
      const int64_t left = job_.x.blocks - group;
      const int64_t count = left < kGroupsAtOnce ? left : kGroupsAtOnce;
      for (int64_t g = 0; g < count; ++g) multiply(group + g, g);
      if (waiting_) store_sums<two_tokens, two_tiles>(waiting_);
      waiting_ = nullptr;
      if (strips_.totals) gather_totals(group, count);
      if (count == kGroupsAtOnce) {
        scale(group, 0, kGroupsAtOnce / strips_.of_block, strips_.of_block);
        continue;
      }
      for (int64_t g = 0; g < count; g += strips_.of_block)
        scale(group, g, 1, count - g < strips_.of_block ? count - g : strips_.of_block);
    }
    for (int64_t k = 0; k < kTiles; ++k)
      for (int64_t t = 0; t < tokens_; ++t)
        finish_tile(job_, tile_ + k, token_ + t, load_floats(out_ + k * kSumsOfGroup / 2 + 16 * t));
  }

 private:
  static constexpr int64_t kTiles = two_tiles ? 2 : 1;

  void multiply(int64_t group, int64_t g) {
    const int64_t inputs = inputs_of_block(job_, group);
    const int64_t bytes = unpacked_bytes(inputs, step_);
    if (strips_.unpack)
      for (int64_t k = 0; k < kTiles; ++k) {
        expand_header(k, group, g);
        strips_.unpack(job_, tile_ + k, group, step_, codes_ + k * strips_.bytes);
      }
    const int8_t* x = job_.x.codes + token_ * job_.x.stride;
    const int64_t first = group * job_.x.block_inputs, stride = job_.x.stride;
    int32_t* sums = sums_ + g * kSumsOfGroup;
    multiply_step<is_signed, two_tokens, two_tiles, true>(
        tokens_at(x, first), stride, codes_, strips_.bytes, waiting_);
    for (int64_t k = step_; k < inputs; k += step_)
      multiply_step<is_signed, two_tokens, two_tiles, false>(
          tokens_at(x, first + k), stride, codes_ + 16 * k, strips_.bytes, nullptr);
    // Where a block is more than one step, its sums are better stored at once.
    waiting_ = inputs <= step_ ? sums : nullptr;
    if (!waiting_) store_sums<two_tokens, two_tiles>(sums);
    codes_ += bytes;
  }

  // Where tokens pass once, headers are read beside their codes: a pass of their own would wait for
  // memory twice.
  void expand_header(int64_t k, int64_t group, int64_t g) {
    const TileMatrix& m = job_.matrix;
    const uint8_t* at = header_of(m, tile_ + k, group);
    float* scale = strips_.headers + (2 * k * kGroupsAtOnce + g) * kTileRows;
    float* beside = scale + kGroupsAtOnce * kTileRows;
    const Header header = read_header(at, m.zero);
    store_floats(scale, header.scale);
    if (m.zero == kMinimum) store_floats(beside, header.minimum);
    if (m.zero == kVariable) store_floats(beside, same_bits<Floats>(header.zero_point));
  }

  void gather_totals(int64_t group, int64_t count) {
    const int32_t* sum = job_.x.sum + token_ * job_.x.blocks + group;
    for (int64_t t = 0; t < tokens_; ++t, sum += job_.x.blocks)
      for (int64_t g = 0; g < count; ++g) totals_[t * kGroupsAtOnce + g] = float(sum[g]);
  }

  // The sums of `blocks` blocks of `groups` groups from `group` + g on join the outputs.
  void scale(int64_t group, int64_t g, int64_t blocks, int64_t groups) {
    // A group wider than a block is the whole row.
    const int64_t next_header = job_.matrix.group_width > kBlockInputs ? 0 : kTileRows;
    const int64_t floats = kTileRows * (strips_.unpack ? kGroupsAtOnce : strips_.groups);
    const int64_t first = strips_.unpack ? g : group + g;
    const float* by = job_.x.scale + token_ * scales_ + (group + g) / strips_.of_block;
    for (int64_t k = 0; k < kTiles; ++k) {
      const float* at = strips_.headers + 2 * k * floats + first * next_header;
      const int32_t* sums = sums_ + g * kSumsOfGroup + k * kSumsOfGroup / 2;
      strips_.scale({at, at + floats, next_header, sums, by, totals_ + g,
                     out_ + k * kSumsOfGroup / 2},
                    blocks, groups, scales_, tokens_);
    }
  }

  const MatmulJob& job_;
  const Strips& strips_;
  const int64_t tile_, token_, step_, tokens_, scales_;
  float* out_;     // (tile, 32 tokens, 16 rows)
  int32_t* sums_;  // (4 groups, tile, 32 tokens, 16 rows)
  float* totals_;  // (32 tokens, 4 groups)
  uint8_t* codes_;
  int32_t* waiting_ = nullptr;  // where the sums in registers are to be stored
};

template <bool is_signed, bool two_tokens, bool two_tiles>
void amx_tokens(const MatmulJob& job, int64_t tile, int64_t token, const Strips& strips,
                int64_t step) {
  TokenBlocks<is_signed, two_tokens, two_tiles>(job, tile, token, strips, step).run();
}

using Tokens = void (*)(const MatmulJob&, int64_t, int64_t, const Strips&, int64_t);
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
  const Scale scale = m.zero == kMinimum ? scale_groups<kMinimum>
                      : is_signed        ? scale_groups<kFixed>
                                         : scale_groups<kVariable>;
  const int64_t bytes = once ? kGroupsAtOnce * kBlockInputs * 16 : 16 * padded_to(m.columns, 64);
  uint8_t* codes = job.scratch + kAmxScratch;
  const Strips strips{codes, bytes, reinterpret_cast<float*>(codes + 2 * bytes),
                      block_count(m.group_width, m.columns),
                      m.group_width < kBlockInputs ? kBlockInputs / m.group_width : 1,
                      once ? unpack : nullptr, scale, m.zero == kMinimum || !is_signed};
  shape_tiles(step);
  for (int64_t tile = job.first_tile; tile < job.last_tile; tile += 2) {
    const bool two = tile + 1 < job.last_tile;
    for (int64_t k = 0; k <= two && !once; ++k) {
      float* headers = strips.headers + 2 * k * kTileRows * strips.groups;
      expand_headers(m, tile + k, headers, headers + kTileRows * strips.groups);
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
  if (job.matrix.sub != kNoSub) return amx_super_matmul(job);
  if (job.matrix.table) {
    switch (job.matrix.bits) {
      case 2: return amx_tiles<2, true>(job);
      case 3: return amx_tiles<3, true>(job);
      default: return amx_tiles<4, true>(job);
    }
  }
  switch (job.matrix.bits) {
    case 2: return amx_tiles<2, false>(job);
    case 3: return amx_tiles<3, false>(job);
    case 4: return amx_tiles<4, false>(job);
    case 5: return amx_tiles<5, false>(job);
    case 6: return amx_tiles<6, false>(job);
    default: return amx_tiles<8, false>(job);
  }
}
