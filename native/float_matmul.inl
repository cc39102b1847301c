// Matrices times f32 activations, for evaluation and for what stays unquantized.
// In: FloatMatmulJob. Out: its rows of `out`. Sixteen rows are decoded to f32, an input a vector,
// kExpandedInputs at a time; every output adds its inputs in order by fused multiply-adds.
// Decoded weights are bit for bit those of formats/grid.py. Twin: NumPy in tests/native.

template <int bits, bool table>
void expand_tile(const TileMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  const uint8_t* base = m.tiles + tile * m.tile_bytes;
  const int64_t width = block_width(m);
  for (int64_t k = first; k < first + inputs; k += kChunkInputs) {
    const int64_t block = k / width, inside = k - block * width;
    const uint8_t* at = base + block_offset(m, block);
    const Header own = read_header(at, m.zero);
    Header half[2] = {own, own};  // of the chunk's inputs
    if (m.sub != kNoSub) {
      half[0] = header_of_group(at, m, inside / m.group_width);
      half[1] = header_of_group(at, m, (inside + kChunkInputs / 2) / m.group_width);
    }
    const Floats zero = m.zero == kVariable ? to_floats(own.zero_point)
                                            : all_floats(float(common_zero(m, table ? 0 : bits) +
                                                               (bits == 8 ? kUnsignedByteZero : 0)));
    Codes slices[8];
    unpack_chunk<bits>(at + header_bytes(m) +
                           chunk_bytes(bits) * (inside / kChunkInputs),
                       slices);
    if constexpr (table) look_up(slices, m.table);
    float* out = to + (k - first) * kTileRows;
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) {
      const Header& header = half[s / 4];
      const Floats level[4] = {to_floats(byte_of<0>(slices[s])), to_floats(byte_of<1>(slices[s])),
                               to_floats(byte_of<2>(slices[s])), to_floats(byte_of<3>(slices[s]))};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        store_floats(out + (4 * s + j) * kTileRows,
                     m.zero == kMinimum ? level[j] * header.scale + header.minimum
                                        : (level[j] - zero) * header.scale);
    }
  }
}

void expand_codes(const TileMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  if (m.table) return expand_tile<4, true>(m, tile, first, inputs, to);
  switch (m.bits) {
    case 2: return expand_tile<2, false>(m, tile, first, inputs, to);
    case 3: return expand_tile<3, false>(m, tile, first, inputs, to);
    case 4: return expand_tile<4, false>(m, tile, first, inputs, to);
    case 5: return expand_tile<5, false>(m, tile, first, inputs, to);
    case 6: return expand_tile<6, false>(m, tile, first, inputs, to);
    default: return expand_tile<8, false>(m, tile, first, inputs, to);
  }
}

typedef float Row16 __attribute__((vector_size(64)));

// Exchanges between two vectors the lanes whose number has the bit `step`.
template <int step, int... lane>
CRUMB_INLINE void exchange(Row16& a, Row16& b) {
  const Row16 low = __builtin_shufflevector(a, b, (lane & step ? 16 + (lane ^ step) : lane)...);
  b = __builtin_shufflevector(a, b, (lane & step ? 16 + lane : lane ^ step)...);
  a = low;
}
template <int step>
CRUMB_INLINE void exchange_rows(Row16 (&x)[16]) {
#pragma GCC unroll 16
  for (int k = 0; k < 16; ++k)
    if (!(k & step))
      exchange<step, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(x[k], x[k + step]);
}
// Sixteen rows of sixteen floats become sixteen columns, in four rounds.
CRUMB_INLINE void transpose(Row16 (&x)[16]) {
  exchange_rows<1>(x);
  exchange_rows<2>(x);
  exchange_rows<4>(x);
  exchange_rows<8>(x);
}

CRUMB_INLINE Floats load_kind(const uint8_t* at, int kind) {
  if (kind == kFloat16) return load_halves(at);
  if (kind == kBfloat16) return load_bfloats(at);
  return load_floats(reinterpret_cast<const float*>(at));
}

void expand_floats(const FloatMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  const int64_t element = m.kind == kFloat32 ? 4 : 2;
  for (int64_t k = first; k < first + inputs; k += 16) {
    Row16 row[16];
    for (int r = 0; r < 16; ++r) {
      const int64_t at = tile * kTileRows + r;
      row[r] = Row16{};
      if (at >= m.rows) continue;
      const uint8_t* weights = m.weights + (at * m.columns + k) * element;
      uint8_t tail[64] = {};
      if (k + 16 > m.columns) {
        __builtin_memcpy(tail, weights, (m.columns - k) * element);
        weights = tail;
      }
      const Floats loaded = load_kind(weights, m.kind);
      __builtin_memcpy(&row[r], &loaded, 64);
    }
    transpose(row);
    __builtin_memcpy(to + (k - first) * kTileRows, row, sizeof row);
  }
}

// out[t][16 rows of each tile] += x[t][first ..] times decoded weights.
template <int tiles, int tokens>
CRUMB_INLINE void float_block(const FloatMatmulJob& job, const float* weights, int64_t tile,
                              int64_t token, int64_t first, int64_t inputs) {
  const float* x = job.x + token * job.x_stride + first;
  float* to = job.out + token * job.out_stride + tile * kTileRows;
  Floats out[tiles][tokens];
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t)
      out[k][t] = first ? load_floats(to + t * job.out_stride + k * kTileRows) : all_floats(0.0f);
  for (int64_t input = 0; input < inputs; ++input) {
    Floats w[tiles];
#pragma GCC unroll 2
    for (int k = 0; k < tiles; ++k)
      w[k] = load_floats(weights + (k * kExpandedInputs + input) * kTileRows);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) {
      const Floats by = all_floats(x[t * job.x_stride + input]);
#pragma GCC unroll 2
      for (int k = 0; k < tiles; ++k) out[k][t] = fma(w[k], by, out[k][t]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) store_floats(to + t * job.out_stride + k * kTileRows, out[k][t]);
}

template <int tiles>
void float_tokens(const FloatMatmulJob& job, const float* weights, int64_t tile, int64_t first,
                  int64_t inputs) {
  int64_t token = 0;
  if constexpr (kStripTokens == 6)
    for (; token + 6 <= job.tokens; token += 6)
      float_block<tiles, 6>(job, weights, tile, token, first, inputs);
  for (; token + 4 <= job.tokens; token += 4)
    float_block<tiles, 4>(job, weights, tile, token, first, inputs);
  for (; token < job.tokens; ++token)
    float_block<tiles, 1>(job, weights, tile, token, first, inputs);
}

void float_matmul(const FloatMatmulJob& job) {
  const int64_t columns = job.tiles ? job.tiles->columns : job.floats->columns;
  const int64_t rows = job.tiles ? job.tiles->rows : job.floats->rows;
  float* weights = reinterpret_cast<float*>(job.scratch);
  for (int64_t tile = job.first_tile; tile < job.last_tile; tile += kStripTiles) {
    const int pair = kStripTiles == 2 && tile + 1 < job.last_tile ? 2 : 1;
    for (int64_t first = 0; first < columns; first += kExpandedInputs) {
      const int64_t left = columns - first, inputs = left < kExpandedInputs ? left : kExpandedInputs;
      for (int k = 0; k < pair; ++k) {
        float* to = weights + k * kExpandedInputs * kTileRows;
        if (job.tiles) expand_codes(*job.tiles, tile + k, first, inputs, to);
        else expand_floats(*job.floats, tile + k, first, inputs, to);
      }
      if (pair == 2) float_tokens<kStripTiles>(job, weights, tile, first, inputs);
      else float_tokens<1>(job, weights, tile, first, inputs);
    }
    if (!job.bias) continue;
    for (int k = 0; k < pair; ++k) {
      const int64_t row = (tile + k) * kTileRows;
      const Floats bias = load_first(job.bias + row, rows - row);
      for (int64_t token = 0; token < job.tokens; ++token) {
        float* to = job.out + token * job.out_stride + row;
        store_floats(to, load_floats(to) + bias);
      }
    }
  }
}

void embed_rows(const EmbedJob& job) {
  const int64_t columns = job.tiles ? job.tiles->columns : job.floats->columns;
  float* weights = reinterpret_cast<float*>(job.scratch);
  for (int64_t token = job.begin; token < job.end; ++token) {
    const int64_t row = job.index[token] + job.first_row;
    const int64_t tile = row / kTileRows, lane = row % kTileRows;
    float* out = job.out + token * job.out_stride;
    for (int64_t first = 0; first < columns; first += kExpandedInputs) {
      const int64_t left = columns - first, inputs = left < kExpandedInputs ? left : kExpandedInputs;
      if (job.tiles) expand_codes(*job.tiles, tile, first, inputs, weights);
      else expand_floats(*job.floats, tile, first, inputs, weights);
      for (int64_t k = 0; k < inputs; ++k) out[first + k] = weights[k * kTileRows + lane];
    }
  }
}
