// Matrices times f32 activations, and rows of matrices as embeddings.
// In: quantized matrices of every format and f32, f16 and bf16 ones. Decoded weights must be exact;
// products are bounded by the roundings of their sum, and a token's bits must not depend on others.
#include <algorithm>

#include "matrix.hpp"

namespace crumb::check {
namespace {

constexpr int kTokens = 29;  // two full blocks of every set, then blocks of 4 and of 1
const int kBatches[] = {2, 3, 4, 5, 6, 7, 8, 12, 13, 17, 29};
const std::vector<int> kColumns = {4, 31, 33, 100, 160, 256, 385, 600};
const int kRows[] = {1, 16, 33, 150};  // the last: two groups of tiles
const char* const kKinds[] = {"f32", "f16", "bf16"};

// An unquantized matrix and what its bytes stand for.
struct Plain {
  Memory<uint8_t> bytes;
  FloatMatrix matrix;
  std::vector<float> weight;

  Plain(int64_t rows, int64_t columns, int kind, Random& random)
      : bytes(rows * columns * (kind == kFloat32 ? 4 : 2)),
        matrix{bytes.data(), rows, columns, kind} {
    for (int64_t k = 0; k < rows * columns; ++k) {
      const float drawn = random.spread();
      weight.push_back(drawn);
      if (kind == kFloat32) std::memcpy(bytes.data() + 4 * k, &drawn, 4);
      if (kind == kFloat16) {
        const uint16_t half = k == 0 ? 1 : to_half(drawn);  // the least subnormal first
        weight[k] = float(from_half(half));
        std::memcpy(bytes.data() + 2 * k, &half, 2);
      }
      if (kind == kBfloat16) {
        uint32_t bits;
        std::memcpy(&bits, &drawn, 4);
        const uint16_t upper = uint16_t(bits >> 16);
        bits &= 0xffff0000u;
        std::memcpy(&weight[k], &bits, 4);
        std::memcpy(bytes.data() + 2 * k, &upper, 2);
      }
    }
  }
};

class Case {
 public:
  Case(std::string name, const TileMatrix* tiles, const FloatMatrix* floats,
       std::vector<float> weight, int64_t rows, int64_t columns, Random& random)
      : name_(std::move(name)), tiles_(tiles), floats_(floats), weight_(std::move(weight)),
        rows_(rows), columns_(columns), count_((rows + 15) / 16), stride_(16 * count_ + 16),
        x_stride_(padded_to(columns, 16)), x_(kTokens * x_stride_), bias_(rows),
        biased_(random.coin()) {
    for (int64_t k = 0; k < x_.count(); ++k) x_[k] = random.spread();
    for (int64_t row = 0; row < rows; ++row) bias_[row] = random.spread();
    for (int t = 0; t < kTokens; ++t)
      for (int64_t row = 0; row < rows; ++row) {
        double value = biased_ ? bias_[row] : 0, size = std::fabs(value);
        for (int64_t k = 0; k < columns; ++k) {
          const double product = double(weight_[row * columns + k]) * x_[t * x_stride_ + k];
          value += product;
          size += std::fabs(product);
        }
        expected_.push_back(value);
        bound_.push_back(roundings(double(columns) + 2) * size);
      }
  }

  void check(const KernelTable& set, FusedBits& fused) {
    std::vector<float> alone(kTokens * stride_);
    for (int t = 0; t < kTokens; ++t) {
      const Memory<float> out = run(set, t, 1, 1);
      std::memcpy(alone.data() + t * stride_, out.data(), stride_ * sizeof(float));
      expect_near(out.data(), expected_.data() + t * rows_, bound_.data() + t * rows_, rows_,
                  [&] { return where("float_matmul", set, 1); });
      expect_untouched(out.data() + stride_ - 16, 16,
                       [&] { return where("float_matmul", set, 1); });
    }
    fused.expect(set, alone.data(), kTokens * stride_,
                 [&] { return where("float_matmul", set, 1); });
    int threads = 1;
    for (int tokens : kBatches) {
      const Memory<float> out = run(set, 0, tokens, threads);
      expect_same(out.data(), alone.data(), tokens * stride_, [&] {
        return where("float_matmul", set, tokens) + " differs from each token alone";
      });
      threads = threads % 3 + 1;
    }
    check_embed(set);
  }

 private:
  Memory<float> run(const KernelTable& set, int64_t token, int64_t tokens, int threads) {
    Memory<float> out(tokens * stride_);
    for (int thread = 0; thread < threads; ++thread) {
      Memory<uint8_t> scratch(matmul_scratch_bytes(columns_));
      set.run.float_matmul({tiles_, floats_, x_.data() + token * x_stride_, x_stride_, tokens,
                            biased_ ? bias_.data() : nullptr, out.data(), stride_,
                            share(count_, thread, threads), share(count_, thread + 1, threads),
                            scratch.data()});
    }
    return out;
  }

  // Each row once, the last first; two threads.
  void check_embed(const KernelTable& set) {
    const int64_t stride = padded_to(columns_, 16);
    std::vector<int32_t> index(rows_);
    for (int64_t row = 0; row < rows_; ++row) index[row] = int32_t(rows_ - 1 - row);
    Memory<float> out(rows_ * stride);
    for (int thread = 0; thread < 2; ++thread) {
      Memory<uint8_t> scratch(matmul_scratch_bytes(columns_));
      set.run.embed({tiles_, floats_, index.data(), out.data(), stride, share(rows_, thread, 2),
                     share(rows_, thread + 1, 2), scratch.data()});
    }
    for (int64_t row = 0; row < rows_; ++row)
      expect_same(out.data() + row * stride, weight_.data() + index[row] * columns_, columns_,
                  [&] { return where("embed", set, 1) + text(", row %d", index[row]); });
  }

  std::string where(const char* kernel, const KernelTable& set, int64_t tokens) const {
    return text("%s %s: %s, %lld tokens%s", kernel, set.name, name_.c_str(), (long long)tokens,
                biased_ ? ", bias" : "");
  }

  const std::string name_;
  const TileMatrix* const tiles_;
  const FloatMatrix* const floats_;
  const std::vector<float> weight_;
  const int64_t rows_, columns_, count_, stride_, x_stride_;
  Memory<float> x_, bias_;
  const bool biased_;
  std::vector<double> expected_, bound_;
};

void check_sets(Case& one, const Sets& sets) {
  FusedBits fused;
  for (const KernelTable* set : sets.tables) one.check(*set, fused);
}

// Float columns, added to what is in `out`.
class Columns {
 public:
  Columns(int64_t rows, int64_t columns, int64_t count, Random& random)
      : rows_(rows), stride_(padded_to(rows, 16) + 16), x_stride_(padded_to(columns, 16)),
        places_(count), halves_(padded_to(rows, 16) * count), x_(kTokens * x_stride_),
        before_(kTokens * stride_) {
    for (int64_t k = 0; k < count; ++k) places_[k] = int32_t(k * columns / count);
    for (int64_t k = 0; k < halves_.count(); ++k) halves_[k] = to_half(random.spread());
    for (int64_t k = 0; k < x_.count(); ++k) x_[k] = random.spread();
    for (int64_t k = 0; k < before_.count(); ++k) before_[k] = random.spread();
  }

  void check(const KernelTable& set, FusedBits& fused) {
    const auto where = [&] {
      return text("add_columns %s: %lld rows, %lld columns", set.name, (long long)rows_,
                  (long long)places_.count());
    };
    std::vector<float> alone;
    for (int t = 0; t < kTokens; ++t) {
      const Memory<float> out = run(set, t, 1, 1);
      alone.insert(alone.end(), out.data(), out.data() + stride_);
      for (int64_t row = 0; row < rows_; ++row) compare(t, row, out[row], where);
      expect_same(out.data() + stride_ - 16, before_.data() + (t + 1) * stride_ - 16, 16, where);
    }
    fused.expect(set, alone.data(), kTokens * stride_, where);
    int threads = 1;
    for (int tokens : kBatches) {
      const Memory<float> out = run(set, 0, tokens, threads);
      expect_same(out.data(), alone.data(), tokens * stride_, where);
      threads = threads % 3 + 1;
    }
  }

 private:
  template <class Where>
  void compare(int64_t token, int64_t row, float found, Where where) {
    double value = before_[token * stride_ + row], size = std::fabs(value);
    for (int64_t k = 0; k < places_.count(); ++k) {
      const int64_t at = (row / 16 * places_.count() + k) * 16 + row % 16;
      const double product = double(from_half(halves_[at])) * x_[token * x_stride_ + places_[k]];
      value += product;
      size += std::fabs(product);
    }
    const double bound = roundings(2 * double(places_.count())) * size;
    expect_near(&found, &value, &bound, 1, where);
  }

  Memory<float> run(const KernelTable& set, int64_t token, int64_t tokens, int threads) {
    Memory<float> out(tokens * stride_);
    std::memcpy(out.data(), before_.data() + token * stride_, tokens * stride_ * sizeof(float));
    const FloatColumns columns{places_.data(), reinterpret_cast<const uint8_t*>(halves_.data()),
                               places_.count()};
    const int64_t tiles = (rows_ + 15) / 16;
    for (int thread = 0; thread < threads; ++thread)
      set.run.add_columns({columns, x_.data() + token * x_stride_, x_stride_, tokens, out.data(),
                           stride_, share(tiles, thread, threads),
                           share(tiles, thread + 1, threads)});
    return out;
  }

  const int64_t rows_, stride_, x_stride_;
  Memory<int32_t> places_;
  Memory<uint16_t> halves_;
  Memory<float> x_, before_;
};

void check_columns(const Sets& sets) {
  int64_t index = 1 << 20;
  for (int rows : kRows)
    for (int count : {1, 3, 12}) {
      Random random(++index);
      Columns one(rows, 100, count, random);
      FusedBits fused;
      for (const KernelTable* set : sets.tables) one.check(*set, fused);
    }
}

}  // namespace

void check_floats(const Sets& sets) {
  check_columns(sets);
  int64_t index = 0;
  for (const Format& format : all_formats())
    for (int columns : columns_of(format, kColumns))
      for (int rows : kRows)
        for (int64_t width : widths_of(format)) {
          Random random(++index);
          if (random.below(4 * sets.every)) continue;
          const Matrix m = random_matrix(format, rows, columns, width, false, random);
          std::vector<float> weight;
          for (int64_t k = 0; k < m.rows * m.columns; ++k)
            weight.push_back(m.weight(k / m.columns, k % m.columns));
          const TileMatrix tiles = m.tile_matrix();
          Case one(m.name(), &tiles, nullptr, weight, rows, columns, random);
          check_sets(one, sets);
        }
  for (int columns : kColumns)
    for (int rows : kRows)
      for (int kind : {kFloat32, kFloat16, kBfloat16}) {
        Random random(++index);
        const Plain plain(rows, columns, kind, random);
        Case one(text("%s, %d x %d", kKinds[kind], rows, columns), nullptr, &plain.matrix,
                 plain.weight, rows, columns, random);
        check_sets(one, sets);
      }
}

}  // namespace crumb::check
