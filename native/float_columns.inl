// Float columns: a few inputs of a matrix whose weights are float16, beside its codes.
// In: ColumnsJob. Out: out[token] += x[token][places] times the columns, for the rows of some tiles.
// Each output adds the columns in their order, whatever the tokens beside it.

template <int tokens>
CRUMB_INLINE void add_columns_of_tile(const ColumnsJob& job, int64_t tile, int64_t token) {
  const float* x = job.x + token * job.x_stride;
  float* out = job.out + token * job.out_stride + tile * kTileRows;
  Floats sums[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) sums[t] = load_floats(out + t * job.out_stride);
  const uint8_t* at = job.columns.tiles + tile * job.columns.count * kColumnBytes;
  for (int64_t k = 0; k < job.columns.count; ++k, at += kColumnBytes) {
    const Floats weights = load_halves(at);
    const float* input = x + job.columns.places[k];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) sums[t] = fma(weights, input[t * job.x_stride], sums[t]);
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) store_floats(out + t * job.out_stride, sums[t]);
}

template <int tokens>
void add_columns_of_tokens(const ColumnsJob& job, int64_t token) {
  for (int64_t tile = job.first_tile; tile < job.last_tile; ++tile)
    add_columns_of_tile<tokens>(job, tile, token);
}

void add_columns(const ColumnsJob& job) {
  int64_t token = 0;
  for (; token + 4 <= job.tokens; token += 4) add_columns_of_tokens<4>(job, token);
  for (; token < job.tokens; ++token) add_columns_of_tokens<1>(job, token);
}
