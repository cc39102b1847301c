// Quantized matrices times int8 activations. In: MatmulJob. Out: its rows of `out`.
// Few tokens: codes are unpacked in registers and used at once, here. Many: strip_matmul.inl. Sums of
// a group are exact integers; groups of a block of 128 inputs are added in order by one fused
// multiply-add, blocks by another, so all ways give the same bits. matmul.inl chooses.

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

// The end of a group: its exact sum joins those of its block of 128 inputs. `sum`: of activations.
CRUMB_INLINE Floats join_group(Floats block, Ints dot, const Header& header, int zero, float sum) {
  block = fma(to_floats(dot), header.scale, block);
  return zero == kMinimum ? fma(header.minimum, all_floats(sum), block) : block;
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

// One group, or a block of a wider one: its sums join those of its block, for some tokens.
template <int bits, bool table, bool fetch, int tokens>
CRUMB_INLINE void fused_group(const MatmulJob& job, Floats (&block)[tokens], const uint8_t* at,
                              const int8_t* x, const int32_t* total, int32_t zero, int64_t chunks,
                              const Header& header) {
  constexpr int kDotBits = table ? 8 : bits, kChains = tokens == 1 ? 2 : 1;
  constexpr bool kRaised = kRaisedCodes && tokens == 1 && !table && raised_by(bits) > 0;
  const TileMatrix& m = job.matrix;
  Ints dot[tokens][kChains];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) {
    dot[t][0] = all_ints(-zero * total[t * job.x.blocks]);
    if constexpr (kChains > 1) dot[t][1] = all_ints(0);
    if (m.zero == kVariable)
      dot[t][0] = dot[t][0] - header.zero_point * all_ints(total[t * job.x.blocks]);
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Codes slices[8];
    unpack_chunk<bits, kRaised>(at, slices);
    if constexpr (table) look_up(slices, m.table);
    if constexpr (fetch) prefetch_codes<bits>(at);
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
    block[t] = join_group(block[t], dot[t][0], header, m.zero, float(total[t * job.x.blocks]));
  }
}

template <int bits, bool table, bool fetch, int tokens>
CRUMB_INLINE void fused_tile(const MatmulJob& job, int64_t tile, int64_t token) {
  const TileMatrix& m = job.matrix;
  const int64_t width = job.x.block_inputs;
  const int32_t zero = common_zero(m, table ? 8 : bits);
  const bool is_block = m.group_width <= kBlockInputs;  // else the one group is the whole row
  const int8_t* x = job.x.codes + token * job.x.stride;
  const float* scale = job.x.scale + token * scale_count(job.x);
  const int32_t* total = job.x.sum + token * job.x.blocks;
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  Header header;
  Floats out[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) out[t] = all_floats(0.0f);

  for (int64_t first = 0; first < m.columns; first += kBlockInputs) {
    const int64_t end = first + kBlockInputs < m.columns ? first + kBlockInputs : m.columns;
    Floats block[tokens];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) block[t] = all_floats(0.0f);
    for (int64_t input = first; input < end; input += width) {
      if (input == 0 || is_block) {
        header = read_header(at, m.zero);
        at += header_bytes(m);
      }
      const int64_t chunks = chunk_count(end - input < width ? end - input : width);
      if (tokens == 1 && chunks == 1)  // without a loop, which a small group would feel
        fused_group<bits, table, fetch>(job, block, at, x, total, zero, 1, header);
      else
        fused_group<bits, table, fetch>(job, block, at, x, total, zero, chunks, header);
      at += chunks * chunk_bytes(bits);
      x += chunks * kChunkInputs;
      ++total;
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) out[t] = fma(block[t], scale[t * scale_count(job.x)], out[t]);
    ++scale;
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) finish_tile(job, tile, token + t, out[t]);
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
    const int64_t token = item / scale_count(to), first = item % scale_count(to) * kBlockInputs;
    const int64_t left = to.columns - first;
    const int64_t inputs = left < kBlockInputs ? left : kBlockInputs;
    const float* x = job.x + (job.rows ? job.rows[token] : token) * job.x_stride + first;
    int32_t* total = to.sum + token * to.blocks + first / to.block_inputs;
    Floats most = all_floats(0.0f);
    for (int64_t k = 0; k < inputs; k += 16) most = max(absolute(load_first(x + k, inputs - k)), most);
    const float peak = largest(most) / 127.0f;
    float scale = peak > kLeastScale ? peak : 0.0f;
    const Floats inverse = all_floats(scale > 0.0f ? 1.0f / scale : 0.0f);
    for (int64_t begin = 0; begin < inputs; begin += to.block_inputs) {
      const int64_t end = begin + to.block_inputs < inputs ? begin + to.block_inputs : inputs;
      Floats sums = all_floats(0.0f);
      for (int64_t k = begin; k < end; k += 16) {
        Floats q = nearest_whole(load_first(x + k, inputs - k) * inverse);
        q = max(min(q, all_floats(127.0f)), all_floats(-127.0f));
        sums = sums + q;
        store_signed_bytes(place_of(to, token, first + k), q);
      }
      const float added = sum(sums);
      const bool finite = added == added;  // else the inputs were not: nor is what is made of them
      if (!finite) scale = added;
      *total++ = finite ? int32_t(added) : 0;
    }
    to.scale[item] = scale;
    if (inputs == left)
      for (int64_t k = padded_to(to.columns, 16); k < padded_to(to.columns, kChunkInputs); ++k)
        *place_of(to, token, k) = 0;
  }
}
