// Steps on rows: quantizing activations, norms, elementwise functions, rotary embedding.
// In: random rows with zeros, tiny and huge values. Codes and plain arithmetic must be exact; norms
// are bounded by counted roundings, functions by the errors that native/math.inl states.
#include <algorithm>

#include "check.hpp"

namespace crumb::check {
namespace {

const int kColumns[] = {4, 16, 31, 32, 33, 64, 96, 100, 128, 130, 257, 384};

// Rows whose padding holds numbers that must not count.
Memory<float> padded_rows(int64_t rows, int64_t columns, int64_t stride, Random& random) {
  Memory<float> x(rows * stride);
  for (int64_t k = 0; k < x.count(); ++k) x[k] = k % stride < columns ? random.spread() : 1e6f;
  return x;
}

// ---- quantize

struct Quantized {
  std::vector<int8_t> codes;  // (tokens, blocks, padded inputs), as the kernel lays rows out
  std::vector<float> scale;
  std::vector<int32_t> sum;
};

void quantize_block(const float* x, int64_t inputs, int64_t block_inputs, int8_t* codes,
                    float& scale, int32_t* sum) {
  float peak = 0;
  for (int64_t k = 0; k < inputs; ++k) peak = std::max(peak, std::fabs(x[k]));
  scale = peak / 127.0f;
  if (!(scale > 1e-36f)) scale = 0;
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int64_t k = 0; k < inputs; ++k) {
    const float steps = std::nearbyint(x[k] * inverse);
    codes[k] = int8_t(std::min(std::max(steps, -127.0f), 127.0f));
    sum[k / block_inputs] += codes[k];
  }
}

void expect_quantized(const KernelTable& set, const Quantized& expected, QuantizeJob job,
                      bool together) {
  const Activations& shape = job.to;
  const int64_t items = int64_t(expected.scale.size()), sums = int64_t(expected.sum.size());
  const int64_t tokens = items / scale_count(shape);
  Memory<int8_t> codes(padded_to(tokens, 32) * shape.stride);
  Memory<float> scale(items);
  Memory<int32_t> sum(sums);
  job.to.codes = codes.data(), job.to.scale = scale.data(), job.to.sum = sum.data();
  job.to.together = together;
  for (int thread = 0; thread < 3; ++thread) {
    job.begin = share(items, thread, 3), job.end = share(items, thread + 1, 3);
    set.run.quantize(job);
  }
  const auto where = [&] {
    return text("quantize %s: %lld columns, sums of %lld%s", set.name, (long long)shape.columns,
                (long long)shape.block_inputs, together ? ", 16 tokens together" : "");
  };
  Memory<int8_t> whole(codes.count());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t k = 0; k < padded_to(shape.columns, 32); ++k)
      whole[together ? place_together(t, k, shape.stride) : t * shape.stride + k] =
          expected.codes[t * shape.stride + k];
  expect_same(codes.data(), whole.data(), codes.count(), where);
  expect_same(scale.data(), expected.scale.data(), items, where);
  expect_same(sum.data(), expected.sum.data(), sums, where);
}

void check_quantize(const Sets& sets, int64_t columns, int64_t block_inputs, Random& random) {
  constexpr int64_t kTokens = 19;
  const int64_t blocks = (columns + block_inputs - 1) / block_inputs;
  const int64_t x_stride = padded_to(columns, 16), stride = padded_to(columns, 32) + kActivationPad;
  Memory<float> x = padded_rows(kTokens, columns, x_stride, random);
  for (int64_t k = 0; k < columns; ++k) {
    x[k] = 0;
    x[x_stride + k] *= 1e-38f;
    x[2 * x_stride + k] *= 1e36f;
    if (k % 3 == 0) x[3 * x_stride + k] = k % 2 ? -63.5f : 127.0f;  // halves, if 127 is the peak
  }
  const int64_t scales = (columns + kBlockInputs - 1) / kBlockInputs;
  Quantized expected{std::vector<int8_t>(kTokens * stride), std::vector<float>(kTokens * scales),
                     std::vector<int32_t>(kTokens * blocks)};
  for (int64_t item = 0; item < kTokens * scales; ++item) {
    const int64_t token = item / scales, first = item % scales * kBlockInputs;
    quantize_block(x.data() + token * x_stride + first, std::min(kBlockInputs, columns - first),
                   block_inputs, expected.codes.data() + token * stride + first,
                   expected.scale[item],
                   expected.sum.data() + token * blocks + first / block_inputs);
  }
  const QuantizeJob job{x.data(), x_stride,
                        {nullptr, nullptr, nullptr, stride, blocks, columns, block_inputs, false},
                        0, 0};
  for (const KernelTable* set : sets.tables)
    for (bool together : {false, true}) expect_quantized(*set, expected, job, together);
}

// ---- norm

struct Norm {
  std::vector<double> value, bound;
};

Norm expected_norm(const float* x, const float* weight, const float* bias, int64_t n,
                   double epsilon, bool centered) {
  double mean = 0, size = 0, variance = 0, away = 0;
  for (int64_t k = 0; k < n; ++k) mean += x[k] / double(n), size += std::fabs(x[k]) / double(n);
  if (!centered) mean = 0;
  for (int64_t k = 0; k < n; ++k) {
    variance += (x[k] - mean) * (x[k] - mean) / double(n);
    away += std::fabs(x[k] - mean) / double(n);
  }
  // A sum adds by lane (n / 16), over lanes (4) and the tail (16), then divides.
  const double added = double(n) / 16 + 22, factor = 1 / std::sqrt(variance + epsilon);
  const double mean_error = centered ? roundings(added) * size : 0;
  const double variance_error = roundings(added + 3) * variance + 2 * mean_error * away +
                                mean_error * mean_error;
  // Half the variance's relative error, and the roundings of sum, root, inverse and two products.
  const double relative = variance_error / (variance + epsilon) / 2 + roundings(6);
  Norm norm;
  for (int64_t k = 0; k < n; ++k) {
    const double scaled = (x[k] - mean) * factor * weight[k];
    const double value = scaled + (bias ? bias[k] : 0);
    norm.value.push_back(value);
    // 1.01: products of errors.
    norm.bound.push_back(1.01 * (mean_error * factor * std::fabs(weight[k]) +
                                 std::fabs(scaled) * relative + std::fabs(value) * kUnit));
  }
  return norm;
}

void check_norm(const Sets& sets, int64_t columns, bool centered, bool biased, Random& random) {
  constexpr int64_t kTokens = 5;
  const int64_t stride = padded_to(columns, 16), out_stride = stride + 16;
  const float epsilon = random.coin() ? 1e-5f : 1e-6f;
  const Memory<float> x = padded_rows(kTokens, columns, stride, random);
  Memory<float> weight(columns), bias(columns);
  for (int64_t k = 0; k < columns; ++k) weight[k] = random.spread(), bias[k] = random.spread();
  FusedBits fused;
  for (const KernelTable* set : sets.tables) {
    Memory<float> out(kTokens * out_stride);
    for (int thread = 0; thread < 2; ++thread)
      set->run.norm({x.data(), out.data(), stride, out_stride, columns, share(kTokens, thread, 2),
                     share(kTokens, thread + 1, 2), weight.data(), biased ? bias.data() : nullptr,
                     epsilon, centered});
    const auto where = [&] {
      return text("norm %s: %lld columns%s%s", set->name, (long long)columns,
                  centered ? ", centered" : "", biased ? ", bias" : "");
    };
    for (int64_t t = 0; t < kTokens; ++t) {
      const Norm expected = expected_norm(x.data() + t * stride, weight.data(),
                                          biased ? bias.data() : nullptr, columns, epsilon,
                                          centered);
      expect_near(out.data() + t * out_stride, expected.value.data(), expected.bound.data(),
                  columns, where);
      expect_untouched(out.data() + t * out_stride + stride, 16, where);
      for (int64_t k = columns; k < stride; ++k)
        expect(std::isfinite(out[t * out_stride + k]),
               [&] { return where() + ": what lies behind is not finite"; });
    }
    fused.expect(*set, out.data(), out.count(), where);
  }
}

// ---- elementwise

// native/math.inl: relative of e^x and absolute of tanh; absolute of erf.
constexpr double kFunctionError = 2e-7, kErrorFunctionError = 8e-7;
constexpr float kNumber = 5.0f;  // of the functions that take one

struct Value {
  double value, bound;
};

Value expected_function(int kind, double x, double y) {
  const double half = std::fabs(x) / 2;
  if (kind == kSilu) {
    // Below -80 the kernel takes e^80, and gives what is smaller than |x| e^-80.
    const double value = x / (1 + std::exp(-x));
    const double relative = kFunctionError + roundings(2);
    return {value, std::fabs(value) * relative +
                       (x < -80 ? -x * std::exp(-80.0) * (1 + relative) : 0)};
  }
  if (kind == kGelu) {
    // z erf'(z) is at most 0.49; z has two roundings. Then one addition and two products.
    const double value = x * (1 + std::erf(x * std::sqrt(0.5))) / 2;
    return {value, half * (kErrorFunctionError + 0.49 * roundings(2) + kUnit) +
                       std::fabs(value) * roundings(2)};
  }
  if (kind == kGeluTanh) {
    // z tanh'(z) is at most 0.45; z has five roundings.
    const double inner = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    const double value = x * (1 + std::tanh(inner)) / 2;
    return {value, half * (kFunctionError + 0.45 * roundings(5) + kUnit) +
                       std::fabs(value) * roundings(2)};
  }
  if (kind == kRelu) return {std::max(x, 0.0), 0};
  if (kind == kScale) return {x * kNumber, std::fabs(x * kNumber) * kUnit};
  if (kind == kClip) return {std::max(std::min(x, double(kNumber)), -double(kNumber)), 0};
  if (kind == kSoftCap) {
    // z tanh'(z) is at most 0.45; z has one rounding, and so has the product.
    const double value = kNumber * std::tanh(x / kNumber);
    return {value, kNumber * (kFunctionError + 0.45 * kUnit) + std::fabs(value) * kUnit};
  }
  const double value = kind == kMultiply ? x * y : x + y;
  return {value, std::fabs(value) * kUnit};
}

Value expected_product(int kind, double x, double y) {
  const Value function = expected_function(kind, x, y);
  return {function.value * y,
          std::fabs(y) * (function.bound + (std::fabs(function.value) + function.bound) * kUnit)};
}

// `paired`: with two arrays, as products and sums always are, and activations may be.
void check_elementwise(const Sets& sets, int kind, bool paired, Random& random) {
  constexpr int64_t kVectors = 2001;
  Memory<float> left(16 * kVectors), right(16 * kVectors);
  std::vector<double> value, bound;
  for (int64_t k = 0; k < left.count(); ++k) {
    left[k] = k == 0 ? 0.0f : k % 2 ? random.within(-100, 100) : random.within(-6, 6);
    right[k] = random.spread();
    const bool product = paired && kind < kMultiply;
    const Value expected = (product ? expected_product : expected_function)(kind, left[k], right[k]);
    value.push_back(expected.value), bound.push_back(expected.bound);
  }
  FusedBits fused;
  for (const KernelTable* set : sets.tables) {
    Memory<float> out(16 * kVectors);
    for (int thread = 0; thread < 3; ++thread)
      set->run.elementwise({left.data(), paired ? right.data() : nullptr, out.data(),
                            share(kVectors, thread, 3), share(kVectors, thread + 1, 3), kind, kNumber});
    const auto where = [&] { return text("elementwise %s: kind %d, paired %d", set->name, kind, paired); };
    expect_near(out.data(), value.data(), bound.data(), out.count(), where);
    fused.expect(*set, out.data(), out.count(), where);
  }
}

// ---- rotary

void check_rotary(const Sets& sets, int head_dim, int dimensions, bool interleaved, bool in_place,
                  Random& random) {
  constexpr int kTokens = 5, kHeads = 3, kPositions = 20;
  const int64_t stride = padded_to(kHeads * head_dim, 16), half = dimensions / 2;
  const Memory<float> x = padded_rows(kTokens, kHeads * head_dim, stride, random);
  Memory<float> turns(kPositions * dimensions);
  for (int64_t k = 0; k < turns.count(); ++k) turns[k] = random.within(-1, 1);
  const int32_t positions[kTokens] = {0, 19, 3, 3, 7};
  std::vector<double> value(x.data(), x.data() + x.count()), bound(x.count(), 0);
  for (int64_t pair = 0; pair < kTokens * kHeads * half; ++pair) {
    const int64_t t = pair / (kHeads * half), head = pair / half % kHeads, k = pair % half;
    const int64_t at = t * stride + head * head_dim + (interleaved ? 2 * k : k);
    const int64_t other = at + (interleaved ? 1 : half);
    const double a = x[at], b = x[other];
    const double c = turns[positions[t] * dimensions + k];
    const double s = turns[positions[t] * dimensions + half + k];
    value[at] = a * c - b * s, value[other] = b * c + a * s;
    bound[at] = roundings(2) * (std::fabs(a * c) + std::fabs(b * s));
    bound[other] = roundings(2) * (std::fabs(b * c) + std::fabs(a * s));
  }
  FusedBits fused;
  for (const KernelTable* set : sets.tables) {
    Memory<float> out(x.count());
    if (in_place) std::memcpy(out.data(), x.data(), x.count() * 4);
    for (int thread = 0; thread < 2; ++thread)
      set->run.rotary({in_place ? out.data() : x.data(), out.data(), stride, stride, positions,
                       turns.data(), kHeads, head_dim, dimensions, interleaved,
                       share(kTokens, thread, 2), share(kTokens, thread + 1, 2)});
    const auto where = [&] {
      return text("rotary %s: %d of %d dimensions%s%s", set->name, dimensions, head_dim,
                  interleaved ? ", interleaved" : "", in_place ? ", in place" : "");
    };
    for (int64_t t = 0; t < kTokens; ++t)
      expect_near(out.data() + t * stride, value.data() + t * stride, bound.data() + t * stride,
                  kHeads * head_dim, where);
    fused.expect(*set, out.data(), out.count(), where);
  }
}

}  // namespace

void check_rows(const Sets& sets) {
  Random random(1);
  for (int columns : kColumns) {
    for (int block : {32, 64, 128}) check_quantize(sets, columns, block, random);
    if (columns % 16 == 0) check_quantize(sets, columns, 16, random);
    if (columns < 128) check_quantize(sets, columns, columns, random);
    for (int kind = 0; kind < 4; ++kind) check_norm(sets, columns, kind & 1, kind & 2, random);
  }
  for (int kind : {int(kSilu), int(kGelu), int(kGeluTanh), int(kRelu)})
    for (bool paired : {false, true}) check_elementwise(sets, kind, paired, random);
  for (int kind : {int(kScale), int(kSoftCap), int(kClip)})
    check_elementwise(sets, kind, false, random);
  for (int kind : {kMultiply, kAdd}) check_elementwise(sets, kind, true, random);
  for (int head_dim : {8, 40, 64})
    for (int dimensions : {2, 6, 8, 20, 64})
      for (int way = 0; way < 4; ++way)
        if (dimensions <= head_dim)
          check_rotary(sets, head_dim, dimensions, way & 1, way & 2, random);
}

}  // namespace crumb::check
