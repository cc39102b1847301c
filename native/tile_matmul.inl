// Quantized matrices times int8 activations. In: MatmulJob. Out: its rows of `out`.
// Few tokens: codes are unpacked in registers and used at once. Many: two tiles are unpacked to
// bytes once and multiplied with all tokens. Sums of a block are exact integers, blocks are added
// in order by one fused multiply-add, so both ways give the same bits. matmul.inl chooses.

// How a tile's blocks lie on its inputs.
struct Blocks {
  int64_t width, columns, count;
  explicit Blocks(const TileMatrix& m)
      : width(block_width(m)), columns(m.columns), count(block_count(width, m.columns)) {}
  int64_t inputs(int64_t block) const { return block_inputs(width, columns, block); }
};

// What a group's header says of its 16 rows.
struct Header {
  Floats scale, minimum;
  Ints zero_point;
};

CRUMB_INLINE Header read_header(const uint8_t* at, int zero) {
  Header header{load_halves(at), {}, {}};
  if (zero == kVariable) header.zero_point = widen_bytes(at + scale_bytes());
  if (zero == kMinimum) header.minimum = load_halves(at + scale_bytes());
  return header;
}

// The end of a block: its exact sum joins the output.
CRUMB_INLINE Floats finish_block(Floats out, Ints dot, const Header& header, int zero, float scale,
                                 int32_t sum) {
  out = fma(to_floats(dot), header.scale * all_floats(scale), out);
  if (zero == kMinimum) out = fma(header.minimum, all_floats(scale * float(sum)), out);
  return out;
}

CRUMB_INLINE void finish_tile(const MatmulJob& job, int64_t tile, int64_t token, Floats out) {
  if (job.bias) {
    const int64_t row = tile * kTileRows;
    out = out + load_first(job.bias + row, job.matrix.rows - row);
  }
  store_floats(job.out + token * job.out_stride + tile * kTileRows, out);
}

// The code that stands for zero in all rows, as the dot product of this set sees it.
CRUMB_INLINE int32_t common_zero(const TileMatrix& m, int dot_bits) {
  const int32_t subtracted = dot_bits == 8 ? kUnsignedByteZero : 0;
  if (m.table) return 128 - subtracted;
  return (m.zero == kFixed ? 1 << (m.bits - 1) : 0) - subtracted;
}

template <int bits, bool table, int tokens>
CRUMB_INLINE void fused_tile(const MatmulJob& job, int64_t tile, int64_t token) {
  constexpr int kDotBits = table ? 8 : bits, kChains = tokens == 1 ? 2 : 1;
  constexpr bool kRaised = kRaisedCodes && tokens == 1 && !table && raised_by(bits) > 0;
  const TileMatrix& m = job.matrix;
  const int32_t zero = common_zero(m, kDotBits);
  const int8_t* x = job.x.codes + token * job.x.stride;
  const float* scale = job.x.scale + token * job.x.blocks;
  const int32_t* total = job.x.sum + token * job.x.blocks;
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  const Blocks blocks(m);
  Floats out[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) out[t] = all_floats(0.0f);

  for (int64_t group = 0; group < blocks.count; ++group) {
    const Header header = read_header(at, m.zero);
    at += header_bytes(m);
    int64_t chunks = chunk_count(blocks.inputs(group));
    while (chunks > 0) {
      Ints dot[tokens][kChains];
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) {
        dot[t][0] = all_ints(-zero * total[t * job.x.blocks]);
        if constexpr (kChains > 1) dot[t][1] = all_ints(0);
        if (m.zero == kVariable)
          dot[t][0] = dot[t][0] - header.zero_point * all_ints(total[t * job.x.blocks]);
      }
      const int64_t here = chunks < 4 ? chunks : 4;
      for (int64_t chunk = 0; chunk < here; ++chunk) {
        Codes slices[8];
        unpack_chunk<bits, kRaised>(at, slices);
        if constexpr (table) look_up(slices, m.table);
        prefetch_codes<bits>(at);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; ++t)
          dot_chunk<kDotBits, kChains>(dot[t], slices, x + t * job.x.stride);
        at += chunk_bytes(bits);
        x += kChunkInputs;
      }
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) {
        if constexpr (kChains > 1)
          dot[t][0] = dot[t][0] + shift_right<kRaised ? raised_by(bits) : 0>(dot[t][1]);
        out[t] = finish_block(out[t], dot[t][0], header, m.zero, scale[t * job.x.blocks],
                              total[t * job.x.blocks]);
      }
      chunks -= here;
      ++scale;
      ++total;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) finish_tile(job, tile, token + t, out[t]);
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

// Unpacked tiles times some tokens. `kind` is the zero that unpacking left: kFixed for a common one.
template <int dot_bits, int kind, int tiles, int tokens>
void strip_block(const MatmulJob& job, int64_t tile, int64_t token, int32_t zero) {
  const TileMatrix& m = job.matrix;
  const Blocks blocks(m);
  const int64_t strip_bytes = 16 * padded_to(m.columns, kChunkInputs);
  const int8_t* x = job.x.codes + token * job.x.stride;
  const float* scale = job.x.scale + token * job.x.blocks;
  const int32_t* total = job.x.sum + token * job.x.blocks;
  const uint8_t* codes = job.scratch;
  const uint8_t* header_at = m.tiles + tile * m.tile_bytes;
  int32_t* shift = reinterpret_cast<int32_t*>(job.scratch + 2 * strip_bytes);
  for (int64_t k = 0; k < tokens * job.x.blocks; ++k) shift[k] = -zero * total[k];
  Floats out[tiles][tokens];
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) out[k][t] = all_floats(0.0f);

  for (int64_t group = 0; group < blocks.count; ++group) {
    int64_t chunks = chunk_count(blocks.inputs(group));
    while (chunks > 0) {
      const int64_t here = chunks < 4 ? chunks : 4;
      Ints dot[tiles][tokens];
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 8
        for (int k = 0; k < tiles; ++k) dot[k][t] = all_ints(shift[t * job.x.blocks]);
      dot_strip<dot_bits>(dot, codes, strip_bytes, x, job.x.stride, here);
#pragma GCC unroll 8
      for (int k = 0; k < tiles; ++k) {
        const Header header = read_header(header_at + k * m.tile_bytes, kind);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; ++t) {
          const int32_t sum = kind == kFixed ? 0 : total[t * job.x.blocks];
          if (kind == kVariable) dot[k][t] = dot[k][t] - header.zero_point * all_ints(sum);
          out[k][t] =
              finish_block(out[k][t], dot[k][t], header, kind, scale[t * job.x.blocks], sum);
        }
      }
      codes += here * 8 * 64;
      x += here * kChunkInputs;
      chunks -= here;
      ++scale;
      ++total;
      ++shift;
    }
    header_at += block_bytes(m, blocks.inputs(group));
  }
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) finish_tile(job, tile + k, token + t, out[k][t]);
}

CRUMB_INLINE int8_t* place_of(const Activations& to, int64_t token, int64_t input) {
  if (!to.together) return to.codes + token * to.stride + input;
  const int64_t among = token % kTokensTogether;
  return to.codes + (token - among) * to.stride + (input / 64 * kTokensTogether + among) * 64 +
         input % 64;
}

constexpr float kLeastScale = 1e-36f;  // below, the inverse could overflow: the block is 0

void quantize_activations(const QuantizeJob& job) {
  const Activations& to = job.to;
  for (int64_t item = job.begin; item < job.end; ++item) {
    const int64_t token = item / to.blocks, block = item % to.blocks;
    const int64_t first = block * to.block_inputs;
    const int64_t left = to.columns - first;
    const int64_t inputs = left < to.block_inputs ? left : to.block_inputs;
    const float* x = job.x + token * job.x_stride + first;
    Floats most = all_floats(0.0f), total = all_floats(0.0f);
    for (int64_t k = 0; k < inputs; k += 16) most = max(absolute(load_first(x + k, inputs - k)), most);
    const float peak = largest(most) / 127.0f, scale = peak > kLeastScale ? peak : 0.0f;
    const Floats inverse = all_floats(scale > 0.0f ? 1.0f / scale : 0.0f);
    for (int64_t k = 0; k < inputs; k += 16) {
      Floats q = nearest_whole(load_first(x + k, inputs - k) * inverse);
      q = max(min(q, all_floats(127.0f)), all_floats(-127.0f));
      total = total + q;
      store_signed_bytes(place_of(to, token, first + k), q);
    }
    if (inputs == left)
      for (int64_t k = padded_to(to.columns, 16); k < padded_to(to.columns, kChunkInputs); ++k)
        *place_of(to, token, k) = 0;
    const float added = sum(total);
    const bool finite = added == added;  // else the inputs were not: nor is what is made of them
    to.scale[item] = finite ? scale : added;
    to.sum[item] = finite ? int32_t(added) : 0;
  }
}
