// Steps on rows of f32: norm, elementwise functions, rotary embedding. In: a job with a range of
// tokens, or of vectors. Out: rows of `out`; what lies behind a row's columns stays finite.
// Sums over columns go by lane, then over lanes in one order. Twins: crumb/operations.

// One group of features. What is behind the only one of a row is free to write.
CRUMB_INLINE void normalize_group(const NormJob& job, const float* x, float* out,
                                  const float* weight, const float* bias) {
  const int64_t n = job.columns;
  float mean = 0.0f;
  if (job.centered) {
    Floats total = all_floats(0.0f);
    for (int64_t k = 0; k < n; k += 16) total = total + load_first(x + k, n - k);
    mean = sum(total) / float(n);
  }
  const Floats center = all_floats(mean);
  Floats squares = all_floats(0.0f);
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) {
    const Floats away = load_floats(x + k) - center;
    squares = fma(away, away, squares);
  }
  float tail = 0.0f;
  for (; k < n; ++k) tail += (x[k] - mean) * (x[k] - mean);
  const float variance = (sum(squares) + tail) / float(n);
  const Floats factor = all_floats(1.0f / __builtin_sqrtf(variance + job.epsilon));
  for (k = 0; k < n; k += 16) {
    const bool whole = job.groups == 1 || k + 16 <= n;
    const Floats features = whole ? load_floats(x + k) : load_first(x + k, n - k);
    Floats y = (features - center) * factor * load_first(weight + k, n - k);
    if (bias) y = y + load_first(bias + k, n - k);
    if (whole) {
      store_floats(out + k, y);
    } else {
      float some[16];
      store_floats(some, y);
      for (int64_t j = k; j < n; ++j) out[j] = some[j - k];
    }
  }
}

void normalize(const NormJob& job) {
  for (int64_t token = job.begin; token < job.end; ++token)
    for (int64_t group = 0; group < job.groups; ++group) {
      const int64_t first = group * job.columns, weights = group * job.weight_step;
      normalize_group(job, job.x + token * job.x_stride + first,
                      job.out + token * job.out_stride + first, job.weight + weights,
                      job.bias ? job.bias + weights : nullptr);
    }
}

template <class F>
CRUMB_INLINE void each_vector(const ElementwiseJob& job, F function) {
  for (int64_t at = 16 * job.begin; at < 16 * job.end; at += 16)
    store_floats(job.out + at, function(load_floats(job.left + at), at));
}

// function(left), times right if there is one.
template <class F>
CRUMB_INLINE void activate(const ElementwiseJob& job, F function) {
  if (!job.right) return each_vector(job, [&](Floats x, int64_t) { return function(x); });
  each_vector(job, [&](Floats x, int64_t at) { return function(x) * load_floats(job.right + at); });
}

void elementwise(const ElementwiseJob& job) {
  switch (job.kind) {
    case kSilu: return activate(job, [](Floats x) { return silu(x); });
    case kGelu: return activate(job, [](Floats x) { return gelu(x); });
    case kGeluTanh: return activate(job, [](Floats x) { return gelu_tanh(x); });
    case kRelu: return activate(job, [](Floats x) { return max(x, all_floats(0.0f)); });
    case kSigmoid: return activate(job, [](Floats x) { return sigmoid(x); });
    case kRelu2:
      return activate(job, [](Floats x) {
        const Floats over = max(x, all_floats(0.0f));
        return over * over;
      });
    case kScale: return activate(job, [&](Floats x) { return x * all_floats(job.number); });
    case kSoftCap: return activate(job, [&](Floats x) { return soft_cap(x, job.number); });
    case kClip:
      return activate(job, [&](Floats x) {
        return max(min(x, all_floats(job.number)), all_floats(-job.number));
      });
    case kClampedGate:
      return each_vector(job, [&](Floats x, int64_t at) {
        return clamped_gate(x, load_floats(job.right + at), job.slope, job.number);
      });
    case kWeight:
      return each_vector(job, [&](Floats x, int64_t) {
        return exponential((x - all_floats(job.slope)) * all_floats(job.number));
      });
    case kMultiply:
      return each_vector(job, [&](Floats x, int64_t at) { return x * load_floats(job.right + at); });
    default:
      return each_vector(job, [&](Floats x, int64_t at) { return x + load_floats(job.right + at); });
  }
}

void rotate(const RotaryJob& job) {
  const int half = job.dimensions / 2;
  const int apart = job.interleaved ? 1 : half, step = job.interleaved ? 2 : 1;
  for (int64_t token = job.begin; token < job.end; ++token) {
    const float* cosine = job.turns + int64_t(job.positions[token]) * job.dimensions;
    const float* sine = cosine + half;
    for (int head = 0; head < job.heads; ++head) {
      const float* x = job.x + token * job.x_stride + int64_t(head) * job.head_dim;
      float* out = job.out + token * job.out_stride + int64_t(head) * job.head_dim;
      for (int pair = 0; pair < half; ++pair) {
        const float a = x[pair * step], b = x[pair * step + apart];
        out[pair * step] = a * cosine[pair] - b * sine[pair];
        out[pair * step + apart] = b * cosine[pair] + a * sine[pair];
      }
      if (x != out)
        for (int k = job.dimensions; k < job.head_dim; ++k) out[k] = x[k];
    }
  }
}
