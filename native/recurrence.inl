// What keeps a state of each sequence: short convolutions and recurrences, sixteen features at a
// time through all rows of their runs. In: a job with a range of vectors. Out: rows of `out`, and
// states. A feature takes its rows one after the other, so no cut of them changes a bit.
// Twins: crumb/operations/conv.py, crumb/operations/wkv.py.

template <int64_t count>
CRUMB_INLINE void convolve_vector(const ConvJob& job, int64_t at) {
  Floats taps[count], past[count];
  for (int64_t j = 0; j < count; ++j) taps[j] = load_floats(job.taps + j * job.tap_stride + at);
  const Floats bias = job.bias ? load_floats(job.bias + at) : all_floats(0.0f);
  for (int64_t r = 0; r < job.run_count; ++r) {
    const StateRun& run = job.runs[r];
    const float* from = job.states.floats + run.from * job.states.stride + at;
    for (int64_t j = 0; j + 1 < count; ++j)
      past[j] = run.from < 0 ? all_floats(0.0f) : load_floats(from + j * job.tap_stride);
    for (int64_t row = run.first_row; row < run.first_row + run.rows; ++row) {
      past[count - 1] = load_floats(job.x + row * job.x_stride + at);
      Floats y = bias;
      for (int64_t j = 0; j < count; ++j) y = fma(taps[j], past[j], y);
      store_floats(job.out + row * job.out_stride + at, y);
      for (int64_t j = 0; j + 1 < count; ++j) past[j] = past[j + 1];
    }
    if (run.to < 0) continue;
    float* to = job.states.floats + run.to * job.states.stride + at;
    for (int64_t j = 0; j + 1 < count; ++j) store_floats(to + j * job.tap_stride, past[j]);
  }
}

template <int64_t count = 2>
void convolve(const ConvJob& job) {
  if (job.count == count) {
    for (int64_t vector = job.begin; vector < job.end; ++vector)
      convolve_vector<count>(job, 16 * vector);
  } else if constexpr (count < kMostTaps) {
    convolve<count + 1>(job);
  }
}

// e^past and e^now over the larger of both: one of the two is 1.
CRUMB_INLINE void share_out(Floats past, Floats now, Floats& of_past, Floats& of_now) {
  const Floats ahead = past - now, one = all_floats(1.0f);
  const Floats less = exponential(all_floats(0.0f) - absolute(ahead));
  EACH_PART(of_past.part[i] = ahead.part[i] >= 0.0f ? one.part[i] : less.part[i];
            of_now.part[i] = ahead.part[i] >= 0.0f ? less.part[i] : one.part[i]);
}

CRUMB_INLINE void run_wkv_vector(const WkvJob& job, int64_t at) {
  const int64_t width = job.weight_stride;
  const Floats decay = load_floats(job.weights + at), bonus = load_floats(job.weights + width + at);
  for (int64_t r = 0; r < job.run_count; ++r) {
    const StateRun& run = job.runs[r];
    Floats total = all_floats(0.0f), share = total, peak = all_floats(-1e38f), old, now;
    if (run.from >= 0) {
      const float* from = job.states.floats + run.from * job.states.stride + at;
      total = load_floats(from), share = load_floats(from + width);
      peak = load_floats(from + 2 * width);
    }
    for (int64_t row = run.first_row; row < run.first_row + run.rows; ++row) {
      const Floats key = load_floats(job.key + row * job.key_stride + at);
      const Floats value = load_floats(job.value + row * job.value_stride + at);
      share_out(peak, key + bonus, old, now);
      store_floats(job.out + row * job.out_stride + at,
                   fma(old, total, now * value) / fma(old, share, now));
      const Floats aged = peak + decay;
      share_out(aged, key, old, now);
      total = fma(old, total, now * value), share = fma(old, share, now);
      peak = max(aged, key);
    }
    if (run.to < 0) continue;
    float* to = job.states.floats + run.to * job.states.stride + at;
    store_floats(to, total), store_floats(to + width, share), store_floats(to + 2 * width, peak);
  }
}

void run_wkv(const WkvJob& job) {
  for (int64_t vector = job.begin; vector < job.end; ++vector) run_wkv_vector(job, 16 * vector);
}
