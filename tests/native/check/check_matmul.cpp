// Quantized matrices times int8 activations: formats x zeros x groups x ragged sizes x tokens.
// Where scales are 1 every result is a whole number below 2^24 and must be exact. Elsewhere the
// bound counts roundings. A token's bits must not depend on its batch, nor on how tiles are shared.
#include <algorithm>

#include "matrix.hpp"

namespace crumb::check {
namespace {

constexpr int kTokens = 65;
const int kBatches[] = {2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 32, 33, 40, 64, 65};
const std::vector<int> kColumns = {4, 31, 32, 33, 60, 96, 100, 128, 130, 160, 257};
const int kRows[] = {1, 15, 16, 17, 33, 48};

// Activations of all tokens, and the memory that the kernels may read behind them.
struct Inputs {
  int64_t columns, block_inputs, blocks, scales, stride;
  Memory<int8_t> codes;
  Memory<float> scale;
  Memory<int32_t> sum;

  Inputs(const Matrix& m, bool exact, Random& random)
      : columns(m.columns), block_inputs(std::min<int64_t>(m.group_width, kBlockInputs)),
        blocks((columns + block_inputs - 1) / block_inputs),
        scales((columns + kBlockInputs - 1) / kBlockInputs),
        stride(padded_to(columns, 32) + kActivationPad), codes(padded_to(kTokens, 32) * stride),
        scale(kTokens * scales), sum(kTokens * blocks) {
    for (int64_t k = 0; k < codes.count(); ++k) codes[k] = int8_t(random.below(255) - 127);
    std::memset(sum.data(), 0, sum.count() * 4);
    for (int64_t t = 0; t < kTokens; ++t) {
      int8_t* of = codes.data() + t * stride;
      for (int64_t k = 0; k < columns; ++k) {
        if (t < 2) of[k] = t ? -127 : 127;
        if (t == 2) of[k] = k % 2 ? -127 : 127;
        sum[t * blocks + k / block_inputs] += of[k];
      }
      for (int64_t k = columns; k < padded_to(columns, 32); ++k) of[k] = 0;
      for (int64_t b = 0; b < scales; ++b)
        scale[t * scales + b] = exact ? 1.0f : random.within(0.001, 0.1);
    }
  }
  Activations from(int64_t token) {
    return {codes.data() + token * stride, scale.data() + token * scales,
            sum.data() + token * blocks, stride, blocks, columns, block_inputs, false};
  }
  // The same with 16 tokens together; nothing but the tokens' own inputs is set.
  Activations together(int64_t token, int64_t tokens, Memory<int8_t>& to) {
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t k = 0; k < padded_to(columns, 32); ++k)
        to[place_together(t, k, stride)] = codes[(token + t) * stride + k];
    Activations found = from(token);
    found.codes = to.data(), found.together = true;
    return found;
  }
};

struct Expected {
  std::vector<double> value, bound;  // (tokens, rows)
};

Expected expected_of(const Matrix& m, Inputs& x, const float* bias, bool exact) {
  Expected expected;
  std::vector<int> centered(m.level);
  for (int64_t row = 0; row < m.rows; ++row)
    for (int64_t k = 0; k < m.columns; ++k)
      centered[row * m.columns + k] -= m.zero_of(row, m.group_of(k));
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t row = 0; row < m.rows; ++row) {
      double value = bias ? bias[row] : 0, size = std::fabs(value);
      for (int64_t b = 0; b < x.blocks; ++b) {
        const int64_t first = b * x.block_inputs, end = std::min(first + x.block_inputs, m.columns);
        int32_t dot = 0;
        for (int64_t k = first; k < end; ++k)
          dot += centered[row * m.columns + k] * x.codes[t * x.stride + k];
        const double scale = x.scale[t * x.scales + first / kBlockInputs];
        const int64_t group = m.group_of(first);
        const double product = m.scale_of(row, group) * scale * dot;
        const double minimum = m.minimum_of(row, group) * scale * x.sum[t * x.blocks + b];
        const double added = m.format.zero == kMinimum ? minimum : 0;
        value += product + added;
        size += std::fabs(product) + std::fabs(added);
      }
      // A term: its product, the additions after it in its block (two of each of at most 8 groups),
      // its block's product and addition, all blocks after it, the bias.
      expected.value.push_back(value);
      expected.bound.push_back(exact ? 0 : roundings(double(x.scales) + 20) * size);
    }
  return expected;
}

class Case {
 public:
  Case(const Matrix& m, bool exact, Random& random)
      : m_(m), tiles_(m.tile_matrix()), x_(m, exact, random), bias_(m.rows),
        stride_(16 * m.tile_count() + 16), biased_(random.coin()) {
    for (int64_t row = 0; row < m.rows; ++row)
      bias_[row] = exact ? float(random.below(201) - 100) : random.spread();
    expected_ = expected_of(m_, x_, bias(), exact);
  }

  void check(const KernelTable& set, FusedBits& fused) {
    std::vector<float> alone(kTokens * stride_);
    for (int t = 0; t < kTokens; ++t) {
      const Memory<float> out = run(set, t, 1, 1);
      expect_untouched(out.data() + stride_ - 16, 16, [&] { return where(set, t, 1); });
      std::memcpy(alone.data() + t * stride_, out.data(), stride_ * sizeof(float));
      expect_near(out.data(), expected_.value.data() + t * m_.rows,
                  expected_.bound.data() + t * m_.rows, m_.rows, [&] { return where(set, t, 1); });
    }
    fused.expect(set, alone.data(), kTokens * stride_, [&] { return where(set, 0, 1); });
    int threads = 1;
    for (int tokens : kBatches) {
      const Memory<float> out = run(set, 0, tokens, threads);
      expect_same(out.data(), alone.data(), tokens * stride_,
                  [&] { return where(set, 0, tokens) + " differs from each token alone"; });
      threads = threads % 3 + 1;
    }
    const Memory<float> out = run(set, 5, 37, 2);
    expect_same(out.data(), alone.data() + 5 * stride_, 37 * stride_,
                [&] { return where(set, 5, 37) + " differs from each token alone"; });
  }

 private:
  const float* bias() const { return biased_ ? bias_.data() : nullptr; }

  Memory<float> run(const KernelTable& set, int64_t token, int64_t tokens, int threads) {
    Memory<float> out(tokens * stride_);
    Memory<int8_t> codes(padded_to(tokens, 32) * x_.stride);
    const bool together = lie_together(set.run, tokens, x_.block_inputs);
    const Activations x = together ? x_.together(token, tokens, codes) : x_.from(token);
    for (int thread = 0; thread < threads; ++thread) {
      Memory<uint8_t> scratch(matmul_scratch_bytes(m_.columns));
      set.run.matmul({tiles_, x, tokens, bias(), out.data(), stride_,
                      share(m_.tile_count(), thread, threads),
                      share(m_.tile_count(), thread + 1, threads), scratch.data()});
    }
    return out;
  }

  std::string where(const KernelTable& set, int64_t token, int64_t tokens) const {
    return text("matmul %s: %s, %lld tokens from %lld%s", set.name, m_.name().c_str(),
                (long long)tokens, (long long)token, biased_ ? ", bias" : "");
  }

  const Matrix& m_;
  const TileMatrix tiles_;
  Inputs x_;
  Memory<float> bias_;
  const int64_t stride_;
  const bool biased_;
  Expected expected_;
};

}  // namespace

void check_matmul(const Sets& sets) {
  int64_t index = 0;
  for (const Format& format : all_formats())
    for (int64_t width : widths_of(format))
      for (int columns : columns_of(format, kColumns))
        for (int rows : kRows) {
          Random random(++index);
          if (random.below(sets.every)) continue;
          const bool exact = random.coin();
          const Matrix m = random_matrix(format, rows, columns, width, exact, random);
          Case one(m, exact, random);
          FusedBits fused;
          for (const KernelTable* set : sets.tables) one.check(*set, fused);
        }
}

}  // namespace crumb::check
