// Recurrences whose state is a matrix for each head, each feature of which fades by its own pace:
// some values of a head at a time through all rows of their runs. In: a job with a range of heads
// times groups of vectors. Out: rows of `out` and `own`, and states.
// A value takes its rows one after the other, so no cut of them changes a bit.
// Twin: crumb/operations/wkv_matrix.py.

// What the state of a head meets at a row, by features of a key.
struct WkvMeeting {
  alignas(64) float key[kMostKeyFeatures];
  alignas(64) float fade[kMostKeyFeatures];
  alignas(64) float seen[kMostKeyFeatures];
  alignas(64) float taken[kMostKeyFeatures];
  float own;
};

// e^-.5: features of RWKV-7 fade by e to the minus this at most.
constexpr float kLargestPace = 0.606530659712633f;

template <bool seven>
CRUMB_INLINE void meet(const WkvMatrixJob& job, int64_t head, int64_t row, WkvMeeting& meeting) {
  const int64_t count = job.key_dim, first = head * count;
  const float *query = job.query + row * job.query_stride + first;
  const float *key = job.key + row * job.key_stride + first;
  const float *pace = job.pace + row * job.pace_stride + first;
  const float *weights = job.weights + first, *bonus = weights + (seven ? 2 : 1) * job.weight_stride;
  const Floats zero = all_floats(0.0f), one = all_floats(1.0f);
  Floats own = zero, squares = zero;
  for (int64_t k = 0; k < count; k += 16) {
    const int64_t left = count - k;
    Floats x = load_first(key + k, left);
    const Floats p = load_first(pace + k, left);
    if constexpr (seven) {
      const float* share = job.share + row * job.share_stride + first;
      const Floats a = sigmoid(load_first(share + k, left)), n = x * load_first(weights + k, left);
      squares = fma(n, n, squares);
      store_floats(meeting.seen + k, n), store_floats(meeting.taken + k, a);
      x = fma(x * (a - one), load_first(weights + job.weight_stride + k, left), x);
      store_floats(meeting.fade + k, exponential(zero - sigmoid(p) * all_floats(kLargestPace)));
    } else {
      const Floats speed = exponential(p + load_first(weights + k, left));
      store_floats(meeting.fade + k, exponential(zero - speed));
    }
    store_floats(meeting.key + k, x);
    own = fma(load_first(query + k, left) * load_first(bonus + k, left), x, own);
  }
  meeting.own = sum(own);
  if constexpr (seven) {
    const float square = sum(squares);
    const Floats over = all_floats(1.0f / __builtin_sqrtf(square > 1e-24f ? square : 1e-24f));
    for (int64_t k = 0; k < count; k += 16) {
      const Floats n = load_floats(meeting.seen + k) * over;
      store_floats(meeting.seen + k, n);
      store_floats(meeting.taken + k, n * load_floats(meeting.taken + k));
    }
  }
}

// One row of one head, on sixteen of its values.
template <bool seven>
CRUMB_INLINE void step_wkv_matrix(const WkvMatrixJob& job, const WkvMeeting& meeting, int64_t head,
                                  int64_t at, int64_t row, float* state) {
  const int64_t count = job.key_dim;
  const float* query = job.query + row * job.query_stride + head * count;
  const int64_t place = head * job.value_dim + at, lanes = job.value_dim - at;
  const Floats value = load_first(job.value + row * job.value_stride + place, lanes);
  const Floats own = value * all_floats(meeting.own);
  Floats y;
  if constexpr (seven) {
    const Floats says = sum_of_features(count, [&](int64_t k, Floats sum) {
      return fma(load_floats(state + 16 * k), meeting.seen[k], sum);
    });
    const Floats lost = all_floats(0.0f) - says;
    y = sum_of_features(count, [&](int64_t k, Floats sum) {
      const Floats faded = load_floats(state + 16 * k) * all_floats(meeting.fade[k]);
      const Floats now = fma(value, meeting.key[k], fma(lost, meeting.taken[k], faded));
      store_floats(state + 16 * k, now);
      return fma(now, query[k], sum);
    });
    store_some(job.own + row * job.own_stride + place, own, lanes);
  } else {
    y = own + sum_of_features(count, [&](int64_t k, Floats sum) {
      const Floats before = load_floats(state + 16 * k);
      const Floats faded = before * all_floats(meeting.fade[k]);
      store_floats(state + 16 * k, fma(value, meeting.key[k], faded));
      return fma(before, query[k], sum);
    });
  }
  store_some(job.out + row * job.out_stride + place, y, lanes);
}

template <bool seven>
void run_wkv_values(const WkvMatrixJob& job, int64_t head, int64_t first, int64_t vectors) {
  const int64_t count = job.key_dim, width = buffer_stride(job.value_dim);
  alignas(64) float state[16 * kWkvVectors * kMostKeyFeatures];
  for (int64_t r = 0; r < job.run_count; ++r) {
    const StateRun& run = job.runs[r];
    const int64_t begin = head * count * width + 16 * first;
    const float* from = job.states.floats + run.from * job.states.stride + begin;
    for (int64_t v = 0; v < vectors; ++v)
      for (int64_t k = 0; k < count; ++k)
        store_floats(state + 16 * (v * count + k), run.from < 0 ? all_floats(0.0f)
                                                   : load_floats(from + k * width + 16 * v));
    for (int64_t row = run.first_row; row < run.first_row + run.rows; ++row) {
      WkvMeeting meeting;
      meet<seven>(job, head, row, meeting);
      for (int64_t v = 0; v < vectors; ++v)
        step_wkv_matrix<seven>(job, meeting, head, 16 * (first + v), row, state + 16 * v * count);
    }
    if (run.to < 0) continue;
    float* to = job.states.floats + run.to * job.states.stride + begin;
    for (int64_t v = 0; v < vectors; ++v)
      for (int64_t k = 0; k < count; ++k)
        store_floats(to + k * width + 16 * v, load_floats(state + 16 * (v * count + k)));
  }
}

void run_wkv_matrix(const WkvMatrixJob& job) {
  const int64_t vectors = buffer_stride(job.value_dim) / 16;
  const int64_t groups = (vectors + kWkvVectors - 1) / kWkvVectors;
  for (int64_t item = job.begin; item < job.end; ++item) {
    const int64_t head = item / groups, first = item % groups * kWkvVectors;
    const int64_t some = vectors - first < kWkvVectors ? vectors - first : kWkvVectors;
    if (job.share) run_wkv_values<true>(job, head, first, some);
    else run_wkv_values<false>(job, head, first, some);
  }
}
