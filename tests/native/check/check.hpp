// What the parts of the kernels' check share: random numbers, guarded memory, comparisons.
// In: the sets that this machine runs. Out: one line on stderr for each mismatch, counted.
// Expected values are its own, in double or exact integers; nothing of native/*.inl is used.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace crumb::check {

constexpr double kUnit = 0x1p-24;  // largest relative error of rounding to f32

// Largest relative error of `count` roundings in a row (Higham, Accuracy and Stability, 3.1).
inline double roundings(double count) { return count * kUnit / (1 - count * kUnit); }

struct Sets {
  std::vector<const KernelTable*> tables;
  int every;  // of the cases of a grid, one in so many
};

// All sets but the baseline round a multiplication and its addition once, so their bits agree.
inline bool fuses(const KernelTable& set) { return std::strcmp(set.name, "baseline") != 0; }

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int below(int64_t count) { return int(bits() % uint64_t(count)); }
  bool coin() { return bits() & 1; }
  float within(double low, double high) {
    return float(low + (high - low) * double(bits() >> 11) * 0x1p-53);
  }
  // As activations are: most small, some large.
  float spread() { return within(-1, 1) * std::ldexp(1.0f, below(9) - 6); }

 private:
  uint64_t state_;
};

// Aligned to 64 bytes and not a byte longer than asked, so that a sanitizer sees every step over.
template <class T>
class Memory {
 public:
  explicit Memory(int64_t count) : count_(count) {
    if (posix_memalign(&at_, 64, count ? count * sizeof(T) : 1)) std::abort();
    std::memset(at_, 0x5a, count * sizeof(T));
  }
  ~Memory() { std::free(at_); }
  Memory(Memory&& other) noexcept : at_(other.at_), count_(other.count_) { other.at_ = nullptr; }
  Memory(const Memory&) = delete;
  T* data() { return static_cast<T*>(at_); }
  const T* data() const { return static_cast<const T*>(at_); }
  T& operator[](int64_t index) { return data()[index]; }
  const T& operator[](int64_t index) const { return data()[index]; }
  int64_t count() const { return count_; }
  void fill(T value) {
    for (int64_t k = 0; k < count_; ++k) data()[k] = value;
  }

 private:
  void* at_ = nullptr;
  int64_t count_;
};

struct Report {
  int64_t compared = 0, wrong = 0;
  uint64_t digest = 0xcbf29ce484222325u;  // FNV-1a of the bits of sets that fuse
  void complain(const std::string& line) {
    if (++wrong <= 40) std::fprintf(stderr, "%s\n", line.c_str());
  }
};
inline Report report;

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

// where() names the case; it is only asked for when something differs.
template <class Where>
void expect(bool holds, Where where) {
  ++report.compared;
  if (!holds) report.complain(where());
}

template <class T, class Where>
void expect_same(const T* found, const T* expected, int64_t count, Where where) {
  ++report.compared;
  if (!std::memcmp(found, expected, count * sizeof(T))) return;
  int64_t at = 0;
  while (!std::memcmp(found + at, expected + at, sizeof(T))) ++at;
  report.complain(where() + text(": at %lld expected %.9g, found %.9g", (long long)at,
                                 double(expected[at]), double(found[at])));
}

template <class Where>
void expect_near(const float* found, const double* expected, const double* bound, int64_t count,
                 Where where) {
  ++report.compared;
  for (int64_t at = 0; at < count; ++at) {
    if (std::fabs(found[at] - expected[at]) <= bound[at]) continue;
    return report.complain(where() + text(": at %lld expected %.9g within %.3g, found %.9g",
                                          (long long)at, expected[at], bound[at],
                                          double(found[at])));
  }
}

// Memory as it was made.
template <class T, class Where>
void expect_untouched(const T* at, int64_t count, Where where) {
  bool whole = true;
  for (int64_t k = 0; k < count * int64_t(sizeof(T)); ++k)
    whole = whole && reinterpret_cast<const uint8_t*>(at)[k] == 0x5a;
  expect(whole, [&] { return where() + ": wrote where it should not"; });
}

// Bits that the sets with fused multiply-adds must all give, on every architecture.
struct FusedBits {
  std::vector<float> first;
  const char* of = nullptr;
  template <class Where>
  void expect(const KernelTable& set, const float* found, int64_t count, Where where) {
    if (!fuses(set)) return;
    if (of) return expect_same(found, first.data(), count, [&] {
      return where() + " differs from " + of;
    });
    first.assign(found, found + count);
    of = set.name;
    for (int64_t k = 0; k < count; ++k) {
      uint32_t bits;
      std::memcpy(&bits, found + k, 4);
      report.digest = (report.digest ^ bits) * 0x100000001b3u;
    }
  }
};

// Of an activation where 16 tokens lie together: (tokens / 16, inputs / 64, 16, 64), 16 rows of
// `stride` for each 16 tokens.
inline int64_t place_together(int64_t token, int64_t input, int64_t stride) {
  return token / 16 * 16 * stride + (input / 64 * 16 + token % 16) * 64 + input % 64;
}

// A thread's share, as native/engine.cpp cuts it.
inline int64_t share(int64_t count, int thread, int threads) { return count * thread / threads; }

void check_matmul(const Sets&);
void check_floats(const Sets&);
void check_rows(const Sets&);
void check_attention(const Sets&);
void check_pool(const Sets&);
void check_engine(const Sets&);

}  // namespace crumb::check
