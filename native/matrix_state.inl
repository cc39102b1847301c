// Recurrences whose state is a matrix for each head, sixteen values of a head at a time through all
// rows of their runs. In: a job with a range of heads times vectors. Out: rows of `out`, and states.
// A value takes its rows one after the other, so no cut of them changes a bit.
// Twin: crumb/operations/matrix_states.py.

// The sum over features of a key, in four parts that are added at the end.
template <class F>
CRUMB_INLINE Floats sum_of_features(int64_t count, F part) {
  Floats sums[4] = {all_floats(0.0f), all_floats(0.0f), all_floats(0.0f), all_floats(0.0f)};
  int64_t k = 0;
  for (; k + 4 <= count; k += 4)
    for (int j = 0; j < 4; ++j) sums[j] = part(k + j, sums[j]);
  for (; k < count; ++k) sums[0] = part(k, sums[0]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

CRUMB_INLINE void store_some(float* at, Floats values, int64_t count) {
  if (count >= 16) return store_floats(at, values);
  float some[16];
  store_floats(some, values);
  for (int64_t k = 0; k < count; ++k) at[k] = some[k];
}

// One row of one head, on sixteen of its values.
template <bool delta>
CRUMB_INLINE void step_matrix(const MatrixStateJob& job, int64_t head, int64_t at, int64_t row,
                              float* state) {
  const int64_t count = job.key_dim, first = head / (job.heads / job.key_heads) * count;
  const float* query = job.query + row * job.query_stride + first;
  const float* key = job.key + row * job.key_stride + first;
  const float* weights = job.weights + head;
  const Floats pace = all_floats(job.step[row * job.step_stride + head] + weights[job.weight_stride]);
  const Floats step = softplus(pace), fade = exponential(step * all_floats(weights[0]));
  const int64_t place = head * job.value_dim + at, lanes = job.value_dim - at;
  const Floats value = load_first(job.value + row * job.value_stride + place, lanes);
  Floats fresh = step * value;
  if constexpr (delta) {
    const Floats says = sum_of_features(count, [&](int64_t k, Floats sum) {
      return fma(load_floats(state + 16 * k), key[k], sum);
    });
    fresh = sigmoid(all_floats(job.share[row * job.share_stride + head])) * (value - fade * says);
  }
  Floats y = sum_of_features(count, [&](int64_t k, Floats sum) {
    const Floats now = fma(fresh, key[k], fade * load_floats(state + 16 * k));
    store_floats(state + 16 * k, now);
    return fma(now, query[k], sum);
  });
  if constexpr (!delta) y = fma(value, weights[2 * job.weight_stride], y);
  store_some(job.out + row * job.out_stride + place, y, lanes);
}

template <bool delta>
CRUMB_INLINE void run_matrix_block(const MatrixStateJob& job, int64_t head, int64_t at) {
  const int64_t width = buffer_stride(job.value_dim), begin = head * job.key_dim * width + at;
  alignas(64) float state[16 * kMostKeyFeatures];
  for (int64_t r = 0; r < job.run_count; ++r) {
    const StateRun& run = job.runs[r];
    const float* from = job.states.floats + run.from * job.states.stride + begin;
    for (int64_t k = 0; k < job.key_dim; ++k)
      store_floats(state + 16 * k, run.from < 0 ? all_floats(0.0f) : load_floats(from + k * width));
    for (int64_t row = run.first_row; row < run.first_row + run.rows; ++row)
      step_matrix<delta>(job, head, at, row, state);
    if (run.to < 0) continue;
    float* to = job.states.floats + run.to * job.states.stride + begin;
    for (int64_t k = 0; k < job.key_dim; ++k)
      store_floats(to + k * width, load_floats(state + 16 * k));
  }
}

void run_matrix_state(const MatrixStateJob& job) {
  const int64_t vectors = buffer_stride(job.value_dim) / 16;
  for (int64_t item = job.begin; item < job.end; ++item) {
    const int64_t head = item / vectors, at = item % vectors * 16;
    if (job.share) run_matrix_block<true>(job, head, at);
    else run_matrix_block<false>(job, head, at);
  }
}
