// Matrices times f32 activations, for evaluation and for what stays unquantized.
// In: FloatMatmulJob. Out: its rows of `out`. Weights of a group of tiles are decoded to f32,
// kExpandedInputs at a time, and stay in the second cache; the same inputs of a few tokens are copied
// to where the first cache holds them. Every output adds its inputs in order by fused multiply-adds.
// Twin: NumPy in tests/native.

// Rows that will be read soon.
struct Ahead {
  const uint8_t* at;
  int64_t rows, stride, bytes;
};
// Fetches one of so many parts of them, so that what waits for memory lies among products.
CRUMB_INLINE void fetch(const Ahead& ahead, int64_t part, int64_t parts) {
  const int64_t end = ahead.rows * (part + 1) / parts;
  for (int64_t row = ahead.rows * part / parts; row < end; ++row)
    for (int64_t byte = 0; byte < ahead.bytes; byte += 64)
      __builtin_prefetch(ahead.at + row * ahead.stride + byte, 0, 2);
}

// Inputs [first, first + inputs) of a job, decoded and copied.
struct FloatChunk {
  const FloatMatmulJob& job;
  int64_t first, inputs;
  float* weights;  // (tiles, kExpandedInputs, 16)
  float* x;        // (tokens, kCopiedInputs)
  Ahead next;      // weights
};

// out[t][16 rows of each tile] += inputs of some tokens times weights of some tiles.
// Not inlined, because gcc 12 then keeps half of the sums in memory.
template <int tiles, int tokens>
__attribute__((noinline)) void float_block(const FloatChunk& chunk, const float* weights, float* to) {
  const int64_t stride = chunk.job.out_stride;
  Floats out[tiles][tokens];
#pragma GCC unroll 2
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 12
    for (int t = 0; t < tokens; ++t)
      out[k][t] = chunk.first ? load_floats(to + t * stride + k * kTileRows) : all_floats(0.0f);
  const float* x = chunk.x;
  for (int64_t input = 0; input < chunk.inputs; ++input) {
    Floats w[tiles];
#pragma GCC unroll 2
    for (int k = 0; k < tiles; ++k)
      w[k] = load_floats(weights + (k * kExpandedInputs + input) * kTileRows);
#pragma GCC unroll 12
    for (int t = 0; t < tokens; ++t) {
      const Floats by = all_floats(x[t * kCopiedInputs + input]);
#pragma GCC unroll 2
      for (int k = 0; k < tiles; ++k) out[k][t] = fma(w[k], by, out[k][t]);
    }
  }
#pragma GCC unroll 2
  for (int k = 0; k < tiles; ++k)
#pragma GCC unroll 12
    for (int t = 0; t < tokens; ++t) store_floats(to + t * stride + k * kTileRows, out[k][t]);
}

// All tiles of a group times some tokens, one block of `blocks`.
template <int tokens>
void float_group(const FloatChunk& chunk, int64_t tile, int64_t tiles, int64_t token,
                 int64_t block, int64_t blocks) {
  const FloatMatmulJob& job = chunk.job;
  const float* x = job.x + token * job.x_stride + chunk.first;
  for (int t = 0; t < tokens; ++t)
    __builtin_memcpy(chunk.x + t * kCopiedInputs, x + t * job.x_stride,
                     chunk.inputs * sizeof(float));
  const int64_t left = job.tokens - token - tokens;
  const Ahead behind{reinterpret_cast<const uint8_t*>(x + tokens * job.x_stride),
                     left < tokens ? left : tokens, 4 * job.x_stride, 4 * chunk.inputs};
  float* to = job.out + token * job.out_stride + tile * kTileRows;
  constexpr int64_t kTileFloats = kExpandedInputs * kTileRows;
  const int64_t steps = (tiles + kFloatTiles - 1) / kFloatTiles;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t k = step * kFloatTiles;
    fetch(behind, step, steps);
    fetch(chunk.next, block * steps + step, blocks * steps);
    const float* weights = chunk.weights + k * kTileFloats;
    if (kFloatTiles == 2 && k + 1 < tiles)
      float_block<kFloatTiles, tokens>(chunk, weights, to + k * kTileRows);
    else
      float_block<1, tokens>(chunk, weights, to + k * kTileRows);
  }
}

void add_bias(const FloatMatmulJob& job, int64_t rows, int64_t tile, int64_t tiles) {
  for (int64_t row = tile * kTileRows; row < (tile + tiles) * kTileRows; row += kTileRows) {
    const Floats bias = load_first(job.bias + row, rows - row);
    for (int64_t token = 0; token < job.tokens; ++token) {
      float* to = job.out + token * job.out_stride + row;
      store_floats(to, load_floats(to) + bias);
    }
  }
}

// The weights of some tiles and inputs where they are floats; codes lie in one stream, which
// processors fetch ahead themselves.
Ahead weights_ahead(const FloatMatmulJob& job, int64_t tile, int64_t tiles, int64_t first,
                    int64_t inputs) {
  if (!job.floats) return {};
  const FloatMatrix& m = *job.floats;
  const int64_t element = m.kind == kFloat32 ? 4 : 2, row = tile * kTileRows;
  const int64_t left = m.rows - row, most = tiles * kTileRows, rows = left < most ? left : most;
  if (m.turned)
    return {m.weights + (first * m.rows + row) * element, inputs, m.rows * element, rows * element};
  return {m.weights + (row * m.columns + first) * element, rows,
          m.columns * element, inputs * element};
}

void multiply_chunk(const FloatChunk& chunk, int64_t tile, int64_t tiles) {
  const FloatMatmulJob& job = chunk.job;
  for (int64_t k = 0; k < tiles; ++k) {
    float* to = chunk.weights + k * kExpandedInputs * kTileRows;
    if (job.tiles) expand_codes(*job.tiles, tile + k, chunk.first, chunk.inputs, to);
    else expand_floats(*job.floats, tile + k, chunk.first, chunk.inputs, to);
  }
  const int64_t rest = job.tokens % kFloatTokens;
  const int64_t blocks = job.tokens / kFloatTokens + rest / 4 + rest % 4;
  int64_t token = 0, block = 0;
  for (; token + kFloatTokens <= job.tokens; token += kFloatTokens)
    float_group<kFloatTokens>(chunk, tile, tiles, token, block++, blocks);
  for (; token + 4 <= job.tokens; token += 4)
    float_group<4>(chunk, tile, tiles, token, block++, blocks);
  for (; token < job.tokens; ++token)
    float_group<1>(chunk, tile, tiles, token, block++, blocks);
}

void float_matmul(const FloatMatmulJob& job) {
  const int64_t columns = job.tiles ? job.tiles->columns : job.floats->columns;
  const int64_t rows = job.tiles ? job.tiles->rows : job.floats->rows;
  float* weights = reinterpret_cast<float*>(job.scratch);
  float* x = weights + kGroupTiles * kExpandedInputs * kTileRows;
  const int64_t chunks = (columns + kExpandedInputs - 1) / kExpandedInputs;
  const int64_t chunk_inputs = padded_to((columns + chunks - 1) / chunks, kChunkInputs);
  // A few tokens take each tile once: it is best decoded into the first cache.
  const int64_t group = job.tokens > kFloatTokens ? kGroupTiles : kFloatTiles;
  for (int64_t tile = job.first_tile; tile < job.last_tile; tile += group) {
    const int64_t left = job.last_tile - tile, tiles = left < group ? left : group;
    for (int64_t first = 0; first < columns; first += chunk_inputs) {
      const int64_t rest = columns - first, inputs = rest < chunk_inputs ? rest : chunk_inputs;
      const bool last = rest <= chunk_inputs, end = last && left <= group;
      const Ahead next = end    ? Ahead{}
                         : last ? weights_ahead(job, tile + group, group, 0, chunk_inputs)
                                : weights_ahead(job, tile, tiles, first + inputs, inputs);
      multiply_chunk({job, first, inputs, weights, x, next}, tile, tiles);
    }
    if (job.bias) add_bias(job, rows, tile, tiles);
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
