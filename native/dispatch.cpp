// Which instruction sets were compiled and which this machine can run.
// In: nothing. Out: rows, slowest first; the last supported one is chosen unless CRUMB_ISA says
// otherwise. A set counts only if the operating system saves its registers: the compiler's test
// asks that for vectors; for AMX tiles Linux gives leave to each process.
#include "kernels.hpp"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace crumb {
namespace {

#ifdef CRUMB_X86
bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool runs_amx() {
  if (!runs_avx512()) return false;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTiles = 1u << 24, kBytes = 1u << 25;
  if ((d & kTiles) == 0 || (d & kBytes) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#ifdef CRUMB_NEON
// The processor's features as Linux lists them for the process; its headers may lack the newer.
bool runs_neon_dotprod() {
  constexpr unsigned long kDotProducts = 1ul << 20;
  return getauxval(AT_HWCAP) & kDotProducts;
}

bool runs_neon_i8mm() {
  constexpr unsigned long kMixedSigns = 1ul << 13;
  return runs_neon_dotprod() && (getauxval(AT_HWCAP2) & kMixedSigns);
}
#endif

bool always() { return true; }

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

int list_choices(Choice out[kMaxChoices]) {
#ifdef CRUMB_X86
  __builtin_cpu_init();
#endif
  int count = 0;
  for (const Row& row : kRows) out[count++] = {row.table, row.runs(), row.needs};
  return count;
}

}  // namespace crumb
