// Quantized matrices times int8 activations of many tokens. In: MatmulJob. Out: its rows of `out`.
// One or two tiles are unpacked once, codes to bytes and headers to floats, and multiplied with all
// tokens. amx_matmul.inl takes these headers too. The order of sums is that of tile_matmul.inl.
// Super-blocks: super_strip.inl.

// How a tile's blocks lie on its inputs.
struct Blocks {
  int64_t width, columns, count;
  explicit Blocks(const TileMatrix& m)
      : width(block_width(m)), columns(m.columns), count(block_count(width, m.columns)) {}
  int64_t inputs(int64_t block) const { return block_inputs(width, columns, block); }
};

// Where a strip's parts lie in scratch. Headers of a tile: (groups, 16) scales, then minima.
struct Strip {
  uint8_t* codes;
  int64_t bytes, groups;  // of a tile
  float* headers;
  int32_t* shift;  // (tokens, blocks): what the common zero takes from a sum
  float* totals;   // (tokens, blocks): sums of activations
  explicit Strip(const MatmulJob& job)
      : codes(job.scratch), bytes(16 * padded_to(job.matrix.columns, kChunkInputs)),
        groups(block_count(job.matrix.group_width, job.matrix.columns)),
        headers(reinterpret_cast<float*>(codes + 2 * bytes)),
        shift(reinterpret_cast<int32_t*>(headers + 2 * header_floats())),
        totals(reinterpret_cast<float*>(shift + kStripTokens * job.x.blocks)) {}
  int64_t header_floats() const { return 2 * kTileRows * groups; }
};

// Headers of a tile's groups: their scales and then, at `beside`, minima or zero points.
inline void expand_headers(const TileMatrix& m, int64_t tile, float* scale, float* beside) {
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  const Blocks blocks(m);
  for (int64_t block = 0; block < blocks.count; ++block) {
    const Header header = read_header(at, m.zero);
    store_floats(scale, header.scale);
    if (m.zero == kMinimum) store_floats(beside, header.minimum);
    if (m.zero == kVariable) store_floats(beside, same_bits<Floats>(header.zero_point));
    scale += kTileRows;
    beside += kTileRows;
    at += block_bytes(m, blocks.inputs(block));
  }
}

// A group's header where expand_headers put it.
CRUMB_INLINE Header expanded_header(const float* scale, const float* beside, int zero) {
  Header header{load_floats(scale), {}, {}};
  if (zero == kMinimum) header.minimum = load_floats(beside);
  if (zero == kVariable) header.zero_point = same_bits<Ints>(load_floats(beside));
  return header;
}

// A tile's codes as bytes, 64 a slice. Variable zeros below 8 bits are folded in: each row's codes
// become code + 2^bits - zero_point, and 2^bits their common zero.
template <int bits, bool table>
void unpack_tile(const TileMatrix& m, int64_t tile, uint8_t* to) {
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  const Blocks blocks(m);
  for (int64_t group = 0; group < blocks.count; ++group) {
    const Header header = read_header(at, m.zero);
    const Ints shift = all_ints(1 << bits) - header.zero_point;
    at += header_bytes(m);
    for (int64_t chunk = chunk_count(blocks.inputs(group)); chunk > 0; --chunk) {
      Codes slices[8];
      unpack_chunk<bits>(at, slices);
      if constexpr (table) look_up(slices, m.table);
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) {
        if (bits < 8 && m.zero == kVariable) slices[s] = add_to_rows(slices[s], shift);
        store_codes(to + 64 * s, slices[s]);
      }
      at += chunk_bytes(bits);
      to += 8 * 64;
    }
  }
}

// One group, or a block of a wider one: its sums join those of its block.
template <int dot_bits, int kind, int tiles, int tokens>
CRUMB_INLINE void strip_group(const MatmulJob& job, const Strip& strip, Floats (&block)[tiles][tokens],
                              const uint8_t* codes, const int8_t* x, int64_t chunks,
                              const float* scale, const int32_t* shift, const float* total) {
  const int64_t blocks = job.x.blocks;
  Ints dot[tiles][tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 8
    for (int k = 0; k < tiles; ++k) dot[k][t] = all_ints(shift[t * blocks]);
  dot_strip<dot_bits>(dot, codes, strip.bytes, x, job.x.stride, chunks);
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k) {
    const float* at = scale + k * strip.header_floats();
    const Header header = expanded_header(at, at + kTileRows * strip.groups, kind);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) {
      if (kind == kVariable)
        dot[k][t] = dot[k][t] - header.zero_point * all_ints(int32_t(total[t * blocks]));
      block[k][t] = join_group(block[k][t], dot[k][t], header, kind,
                               kind == kMinimum ? total[t * blocks] : 0.0f);
    }
  }
}

// Unpacked tiles times some tokens. `kind` is the zero that unpacking left: kFixed for a common one.
template <int dot_bits, int kind, int tiles, int tokens>
void strip_block(const MatmulJob& job, int64_t tile, int64_t token, int32_t zero) {
  const TileMatrix& m = job.matrix;
  const Strip strip(job);
  const int64_t inputs = job.x.block_inputs, scales = scale_count(job.x);
  const int64_t next_header = m.group_width <= kBlockInputs ? kTileRows : 0;  // wider: all the row
  const int8_t* x = job.x.codes + token * job.x.stride;
  const float* scale = job.x.scale + token * scales;
  const int32_t* total = job.x.sum + token * job.x.blocks;
  for (int64_t k = 0; k < tokens * job.x.blocks; ++k) strip.shift[k] = -zero * total[k];
  if (kind != kFixed)
    for (int64_t k = 0; k < tokens * job.x.blocks; ++k) strip.totals[k] = float(total[k]);
  const uint8_t* codes = strip.codes;
  const float* header = strip.headers;
  int64_t group = 0;
  Floats out[tiles][tokens];
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) out[k][t] = all_floats(0.0f);

  for (int64_t first = 0; first < m.columns; first += kBlockInputs) {
    const int64_t end = first + kBlockInputs < m.columns ? first + kBlockInputs : m.columns;
    Floats block[tiles][tokens];
#pragma GCC unroll 8
    for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) block[k][t] = all_floats(0.0f);
    for (int64_t input = first; input < end; input += inputs) {
      const int64_t here = end - input < inputs ? end - input : inputs;
      strip_group<dot_bits, kind>(job, strip, block, codes, x, chunk_count(here),
                                                 header, strip.shift + group, strip.totals + group);
      codes += kTileRows * padded_to(here, kChunkInputs);
      x += inputs;
      header += next_header;
      ++group;
    }
#pragma GCC unroll 8
    for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) out[k][t] = fma(block[k][t], scale[t * scales], out[k][t]);
    ++scale;
  }
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) finish_tile(job, tile + k, token + t, out[k][t]);
}
