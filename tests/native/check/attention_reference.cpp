// Attention in double precision over what the cache holds; the bounds follow the kernel's steps.
#include "attention_reference.hpp"

#include <algorithm>

#include "matrix.hpp"

namespace crumb::check {
namespace {

constexpr double kFunctionError = 2e-7;  // native/math.inl: relative of e^x, absolute of tanh

// The numbers of one head of one position, as the cache keeps them. Returns the int8 scale.
float cache_head(const float* x, int head_dim, int kind, Cached* cached) {
  float peak = 0;
  for (int d = 0; d < head_dim; ++d) peak = std::max(peak, std::fabs(x[d]));
  const float scale = peak / 127.0f > 1e-36f ? peak / 127.0f : 0.0f;
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int d = 0; d < head_dim; ++d) {
    uint32_t bits = 0;
    if (kind == kFloat32) {
      std::memcpy(&bits, x + d, 4);
      cached[d] = {x[d], bits};
    } else if (kind == kFloat16) {
      const uint16_t half = to_half(std::min(std::max(x[d], -65504.0f), 65504.0f));
      cached[d] = {from_half(half), half};
    } else {
      const float steps = std::nearbyint(x[d] * inverse);
      cached[d] = {double(steps) * scale, uint8_t(int8_t(steps))};
    }
  }
  return scale;
}

struct Score {
  double value, error;
};

// A query's score with a position: the query's product with scale, a product and an addition for
// each feature, and the int8 scale.
Score score_of(const AttentionShape& shape, const float* query, const Cached* key, float scale) {
  double value = 0, size = 0;
  for (int d = 0; d < shape.head_dim; ++d) {
    const double product = double(query[d]) * scale * key[d].value;
    value += product;
    size += std::fabs(product);
  }
  Score score{value, roundings(shape.head_dim + 3) * size};
  if (shape.soft_cap > 0) {
    const double cap = shape.soft_cap;
    score.value = cap * std::tanh(value / cap);
    // z tanh'(z) is at most 0.45; z has one rounding, and so has the product.
    score.error += cap * (kFunctionError + 0.45 * kUnit) + std::fabs(score.value) * kUnit;
  }
  return score;
}

// The score with what its head's slope adds: two products and an addition.
Score tilted(Score score, float slope, int64_t apart) {
  const double added = double(slope) * double(apart);
  score.value += added;
  score.error += (2 * std::fabs(added) + std::fabs(score.value)) * kUnit;
  return score;
}

// One query's mixture of values.
void mix(const AttentionShape& shape, const std::vector<Score>& scores, const Cached* const* values,
         double* out, double* bound) {
  double top = -1e300, total = 0, total_error = 0;
  for (const Score& score : scores) top = std::max(top, score.value);
  std::vector<double> weight, error;
  for (const Score& score : scores) {
    weight.push_back(std::exp(score.value - top));
    error.push_back(score.error + kUnit * (top - score.value) + kFunctionError);
    total += weight.back();
    total_error += weight.back() * error.back();
  }
  const double count = double(scores.size());
  for (int d = 0; d < shape.head_dim; ++d) {
    double mixed = 0, size = 0, size_error = 0;
    for (size_t k = 0; k < scores.size(); ++k) {
      const double product = weight[k] * values[k][d].value;
      mixed += product;
      size += std::fabs(product);
      size_error += std::fabs(product) * error[k];
    }
    out[d] = mixed / total;
    // Products and additions; the int8 scale, the weights' sum, its inverse, the last product.
    // 1.01: products of errors.
    bound[d] = 1.01 * (size_error / total + std::fabs(out[d]) * total_error / total +
                       size / total * roundings(count + 1 + count / 16 + 1 + 4 + 2));
  }
}

}  // namespace

std::string AttentionShape::name() const {
  const char* kinds[] = {"f32", "f16", "bf16", "int8"};
  return text("%s, %d heads on %d, head_dim %d%s, window %lld, cap %g%s, chunk %lld", kinds[kind],
              heads, key_value_heads, head_dim, causal ? "" : ", all see all", (long long)window,
              double(soft_cap), slopes.empty() ? "" : ", slopes", (long long)chunk);
}

Sequence random_sequence(const AttentionShape& shape, int64_t tokens, Random& random) {
  Sequence of;
  of.tokens = tokens;
  const int64_t heads = tokens * shape.key_value_heads, kept = heads * shape.head_dim;
  for (int64_t k = 0; k < tokens * shape.heads * shape.head_dim; ++k)
    of.query.push_back(random.spread());
  for (int64_t k = 0; k < kept; ++k) of.key.push_back(random.spread());
  for (int64_t k = 0; k < kept; ++k) of.value.push_back(random.spread());
  for (int d = 0; d < shape.head_dim; ++d) of.value[d] = 0;  // a head without a scale
  if (shape.kind == kFloat16) of.value[1] = 1e6f, of.value[2] = 1e-7f;
  of.cached_key.resize(kept), of.cached_value.resize(kept);
  for (int64_t k = 0; k < heads; ++k) {
    const int64_t at = k * shape.head_dim;
    of.key_scale.push_back(
        cache_head(of.key.data() + at, shape.head_dim, shape.kind, of.cached_key.data() + at));
    of.value_scale.push_back(
        cache_head(of.value.data() + at, shape.head_dim, shape.kind, of.cached_value.data() + at));
  }
  return of;
}

Attended attention_reference(const AttentionShape& shape, const Sequence& of, float scale) {
  const int64_t row = int64_t(shape.heads) * shape.head_dim;
  Attended attended{std::vector<double>(of.tokens * row), std::vector<double>(of.tokens * row)};
  for (int64_t t = 0; t < of.tokens; ++t)
    for (int head = 0; head < shape.heads; ++head) {
      const int kept = head / (shape.heads / shape.key_value_heads);
      const int64_t at = t * row + head * shape.head_dim;
      std::vector<Score> scores;
      std::vector<const Cached*> values;
      for (int64_t p = 0; p < of.tokens; ++p) {
        if (shape.causal && p > t) continue;
        if (shape.window && p + shape.window <= t) continue;
        if (shape.chunk && p < t - t % shape.chunk) continue;
        const int64_t from = (p * shape.key_value_heads + kept) * shape.head_dim;
        scores.push_back(score_of(shape, of.query.data() + at, of.cached_key.data() + from, scale));
        if (!shape.slopes.empty()) scores.back() = tilted(scores.back(), shape.slopes[head], p - t);
        values.push_back(of.cached_value.data() + from);
      }
      mix(shape, scores, values.data(), attended.value.data() + at, attended.bound.data() + at);
    }
  return attended;
}

}  // namespace crumb::check
