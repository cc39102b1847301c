// Which instruction sets were compiled and which this machine can run.
// In: nothing. Out: rows, slowest first; the last supported one is chosen unless CRUMB_ISA says
// otherwise. A set counts only if the operating system saves its registers: the compiler's test
// asks that for vectors; for AMX tiles Linux gives leave to each process.
#include "kernels.hpp"

#ifdef CRUMB_X86
#include <cpuid.h>
#endif
#if defined(CRUMB_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(CRUMB_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(CRUMB_NEON) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace crumb {
namespace {

#ifdef CRUMB_X86
// Not every compiler's test knows the name f16c; it needs the registers that avx2 asks for.
bool converts_halves() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kHalves = 1u << 29;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & kHalves);
}

bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_halves();
}

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool runs_amx() {
  if (!runs_avx512()) return false;
#ifdef CRUMB_EMULATES_AMX
  return true;
#endif
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTiles = 1u << 24, kBytes = 1u << 25;
  if ((d & kTiles) == 0 || (d & kBytes) == 0) return false;
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#if defined(CRUMB_NEON) && defined(__linux__)
// The processor's features as Linux lists them for the process; its headers may lack the newer.
bool runs_neon_dotprod() {
  constexpr unsigned long kDotProducts = 1ul << 20;
  return getauxval(AT_HWCAP) & kDotProducts;
}

bool runs_neon_i8mm() {
  constexpr unsigned long kMixedSigns = 1ul << 13;
  return runs_neon_dotprod() && (getauxval(AT_HWCAP2) & kMixedSigns);
}
#elif defined(CRUMB_NEON) && defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(name, &value, &bytes, nullptr, 0) == 0 && value == 1;
}

bool runs_neon_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }

bool runs_neon_i8mm() {
  return runs_neon_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM");
}
#elif defined(CRUMB_NEON)
// Elsewhere: what the compiler was told that every processor of the target has.
bool runs_neon_dotprod() {
#ifdef __ARM_FEATURE_DOTPROD
  return true;
#else
  return false;
#endif
}

bool runs_neon_i8mm() {
#ifdef __ARM_FEATURE_MATMUL_INT8
  return runs_neon_dotprod();
#else
  return false;
#endif
}
#endif

bool always() { return true; }

// A Zen 4 reads 25 GB/s a thread without prefetches of ours, 15 with them; Xeons the other way round.
bool fetches_ahead() {
#ifdef CRUMB_X86
  __builtin_cpu_init();
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

struct Row {
  const KernelTable* table;
  bool (*runs)();
  const char* needs;
};

const Row kRows[] = {
    {&kBaselineKernels, always, "nothing"},
#ifdef CRUMB_X86
    {&kAvx2Kernels, runs_avx2, "avx2 fma f16c"},
    {&kAvx512Kernels, runs_avx512, "avx512f avx512bw avx512dq avx512vl avx512_vnni"},
    {&kAmxKernels, runs_amx, "those of avx512, amx_tile amx_int8 and leave to use them"},
#endif
#ifdef CRUMB_NEON
    {&kNeonDotprodKernels, runs_neon_dotprod, "asimddp"},
    {&kNeonI8mmKernels, runs_neon_i8mm, "asimddp i8mm"},
#endif
};
static_assert(sizeof kRows / sizeof kRows[0] <= kMaxChoices);

}  // namespace

extern const bool kFetchesAhead = fetches_ahead();

int list_choices(Choice out[kMaxChoices]) {
#ifdef CRUMB_X86
  __builtin_cpu_init();
#endif
  int count = 0;
  for (const Row& row : kRows) out[count++] = {row.table, row.runs(), row.needs};
  return count;
}

}  // namespace crumb
