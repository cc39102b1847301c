// The two limits of a matrix product: how fast memory is read, how fast registers are multiplied.
// In: an instruction set, threads. Out: seconds of one pass; multiply-adds per second.
// One plain file: each function says its own instruction set, and dispatch is a table of pointers.
// Throws std::invalid_argument for a set that is not compiled in or does not run here.
#include "limits.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

namespace crumb {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

constexpr int64_t kStep = 512;  // bytes read at once, in as many sums
constexpr int64_t kAhead = 4096;

// The sum of all 64-bit integers, so that nothing read can be left out.
#define CRUMB_READ(name, attributes, vector_bytes)                               \
  attributes uint64_t name(const uint8_t* at, const uint8_t* end) {              \
    typedef uint64_t Vector __attribute__((vector_size(vector_bytes), may_alias)); \
    constexpr int kSums = 8, kVectors = int(kStep) / vector_bytes;               \
    Vector sum[kSums] = {};                                                      \
    for (; at < end; at += kStep) {                                              \
      _Pragma("GCC unroll 8")                                                    \
      for (int line = 0; line < kStep; line += 64) __builtin_prefetch(at + kAhead + line); \
      _Pragma("GCC unroll 32")                                                   \
      for (int k = 0; k < kVectors; ++k)                                         \
        sum[k % kSums] += reinterpret_cast<const Vector*>(at)[k];                \
    }                                                                            \
    for (int k = 1; k < kSums; ++k) sum[0] += sum[k];                            \
    uint64_t total = 0;                                                          \
    for (int lane = 0; lane < vector_bytes / 8; ++lane) total += sum[0][lane];   \
    return total;                                                                \
  }

CRUMB_READ(read_plain, , 16)

// Each dot_* (int8) and fma_* (f32) does `rounds` rounds in registers alone and returns the
// multiply-adds of one round.

typedef int16_t Shorts __attribute__((vector_size(16)));

int64_t dot_baseline(int64_t rounds) {
  constexpr int kChains = 12;  // more than latency times throughput, fewer than registers
  Shorts sum[kChains] = {};
  Shorts factor, added;
  __builtin_memset(&factor, 3, sizeof factor);
  __builtin_memset(&added, 5, sizeof added);
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) sum[k] = sum[k] * factor + added;
  for (int k = 1; k < kChains; ++k) sum[0] += sum[k];
  volatile int16_t kept = sum[0][0];
  (void)kept;
  return kChains * 8;
}

int64_t fma_baseline(int64_t rounds) {
  typedef float Floats __attribute__((vector_size(16)));
  constexpr int kChains = 12;
  Floats sum[kChains] = {};
  const Floats factor = {0.5f, 0.5f, 0.5f, 0.5f};
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) sum[k] = sum[k] * factor + factor;
  for (int k = 1; k < kChains; ++k) sum[0] += sum[k];
  volatile float first = sum[0][0];
  (void)first;
  return kChains * 4;
}

// As many sums as hide the latency of two units that take four cycles each, and a little more.
#define CRUMB_FMA(name, attributes, vector_bytes, sums, factors, instruction)   \
  attributes int64_t name(int64_t rounds) {                                     \
    typedef float Vector __attribute__((vector_size(vector_bytes)));            \
    constexpr int kChains = 12;                                                 \
    Vector sum[kChains] = {}, zero{};                                           \
    for (int64_t round = 0; round < rounds; ++round)                            \
      _Pragma("GCC unroll 12")                                                  \
      for (int k = 0; k < kChains; ++k)                                         \
        asm volatile(instruction : sums(sum[k]) : factors(zero));               \
    return kChains * (vector_bytes / 4);                                        \
  }

#ifdef CRUMB_X86
CRUMB_READ(read_avx2, __attribute__((target("avx2"))), 32)
CRUMB_READ(read_avx512, __attribute__((target("avx512f"))), 64)

// Products gather in 16 bits over 8 instructions before they are widened, as in registers_avx2.inl.
__attribute__((target("avx2"))) int64_t dot_avx2(int64_t rounds) {
  typedef int64_t Vector __attribute__((vector_size(32)));
  constexpr int kChains = 4, kGathered = 8;
  Vector sum[kChains] = {}, gathered[kChains] = {}, product, zero{};
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int g = 0; g < kGathered; ++g)
#pragma GCC unroll 4
      for (int k = 0; k < kChains; ++k)
        asm volatile("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0"
                     : "+x"(gathered[k]), "=&x"(product) : "x"(zero));
#pragma GCC unroll 4
    for (int k = 0; k < kChains; ++k)
      asm volatile("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0"
                   : "+x"(sum[k]), "=&x"(product) : "x"(gathered[k]), "x"(zero));
  }
  return kChains * kGathered * 32;
}

__attribute__((target("avx512f,avx512vnni"))) int64_t dot_avx512(int64_t rounds) {
  typedef int64_t Vector __attribute__((vector_size(64)));
  constexpr int kChains = 16;
  Vector sum[kChains] = {}, zero{};
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
    for (int k = 0; k < kChains; ++k)
      asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum[k]) : "v"(zero));
  return kChains * 64;
}

CRUMB_FMA(fma_avx2, __attribute__((target("avx2,fma"))), 32, "+x", "x",
          "vfmadd231ps %1, %1, %0")
CRUMB_FMA(fma_avx512, __attribute__((target("avx512f"))), 64, "+v", "v",
          "vfmadd231ps %1, %1, %0")

// Six sums, so that none waits for the one before; two more tiles are the operands.
int64_t dot_amx(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shapes;
  asm volatile("ldtilecfg %0" : : "m"(shapes));
  asm volatile("tilezero %tmm6\n\ttilezero %tmm7");
  for (int64_t round = 0; round < rounds; ++round)
    asm volatile(
        "tdpbssd %tmm7, %tmm6, %tmm0\n\ttdpbssd %tmm7, %tmm6, %tmm1\n\t"
        "tdpbssd %tmm7, %tmm6, %tmm2\n\ttdpbssd %tmm7, %tmm6, %tmm3\n\t"
        "tdpbssd %tmm7, %tmm6, %tmm4\n\ttdpbssd %tmm7, %tmm6, %tmm5");
  asm volatile("tilerelease");
  return 6 * 16 * 16 * 64;
}
#endif

#ifdef CRUMB_NEON
CRUMB_FMA(fma_neon, , 16, "+w", "w", "fmla %0.4s, %1.4s, %1.4s")

#define CRUMB_DOT(name, attributes, instruction, products)                      \
  attributes int64_t name(int64_t rounds) {                                     \
    typedef int64_t Vector __attribute__((vector_size(16)));                    \
    constexpr int kChains = 16;                                                 \
    Vector sum[kChains] = {}, zero{};                                           \
    for (int64_t round = 0; round < rounds; ++round)                            \
      _Pragma("GCC unroll 16")                                                  \
      for (int k = 0; k < kChains; ++k)                                         \
        asm volatile(instruction : "+w"(sum[k]) : "w"(zero));                   \
    return kChains * products;                                                  \
  }
CRUMB_DOT(dot_neon_dotprod, __attribute__((target("arch=armv8.2-a+dotprod"))),
          "sdot %0.4s, %1.16b, %1.16b", 16)
CRUMB_DOT(dot_neon_i8mm, __attribute__((target("arch=armv8.2-a+dotprod+i8mm"))),
          "smmla %0.4s, %1.16b, %1.16b", 32)
#endif

struct Row {
  const char* name;
  uint64_t (*read)(const uint8_t*, const uint8_t*);
  int64_t (*dot)(int64_t);
  int64_t (*fma)(int64_t);
};

const Row kRows[] = {
    {"baseline", read_plain, dot_baseline, fma_baseline},
#ifdef CRUMB_X86
    {"avx2", read_avx2, dot_avx2, fma_avx2},
    {"avx512", read_avx512, dot_avx512, fma_avx512},
    {"amx", read_avx512, dot_amx, fma_avx512},
#endif
#ifdef CRUMB_NEON
    {"neon-dotprod", read_plain, dot_neon_dotprod, fma_neon},
    {"neon-i8mm", read_plain, dot_neon_i8mm, fma_neon},
#endif
};

const Row& row_named(const std::string& isa) {
  Choice choices[kMaxChoices];
  const int count = list_choices(choices);
  for (int k = 0; k < count; ++k)
    if (choices[k].supported && isa == choices[k].table->name)
      for (const Row& row : kRows)
        if (isa == row.name) return row;
  throw std::invalid_argument("instruction set not compiled or not supported here: " + isa);
}

// Calls work(thread) on each thread of the pool.
template <class Work>
void on_threads(Pool& pool, Work& work) {
  pool.run([](void* context, int thread) { (*static_cast<Work*>(context))(thread); }, &work);
}

}  // namespace

double read_pass_seconds(const std::string& isa, const uint8_t* array, int64_t bytes,
                         int threads) {
  const Row& row = row_named(isa);
  Pool pool(threads);
  std::atomic<uint64_t> total{0};
  auto read = [&](int thread) {
    const int64_t steps = bytes / kStep, begin = steps * thread / pool.threads();
    const int64_t end = steps * (thread + 1) / pool.threads();
    total += row.read(array + begin * kStep, array + end * kStep);
  };
  auto nothing = [](int) {};
  on_threads(pool, nothing);  // the threads are awake when the clock starts
  const auto begin = Clock::now();
  on_threads(pool, read);
  return seconds_since(begin);
}

double multiply_peak(const std::string& isa, Products of, int threads, double seconds) {
  const Row& row = row_named(isa);
  const auto products = of == Products::kFloats ? row.fma : row.dot;
  Pool pool(threads);
  std::vector<double> rate(pool.threads());
  auto multiply = [&](int thread) {
    constexpr int64_t kRounds = 2000;  // some tens of microseconds between looks at the clock
    products(kRounds);
    const auto begin = Clock::now();
    int64_t done = 0;
    double passed = 0.0;
    do {
      done += kRounds * products(kRounds);
      passed = seconds_since(begin);
    } while (passed < seconds);
    rate[thread] = double(done) / passed;
  };
  on_threads(pool, multiply);
  return std::accumulate(rate.begin(), rate.end(), 0.0);
}

}  // namespace crumb
