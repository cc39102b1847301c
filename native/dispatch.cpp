// Which instruction sets were compiled and which this machine can run.
// In: nothing. Out: the tables, slowest first; a later supported row overrides an earlier one.
// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
#include "kernels.hpp"

namespace crumb {

int list_choices(Choice out[kMaxChoices]) {
  int count = 0;
  out[count++] = {&kBaselineKernels, true};
#ifdef CRUMB_X86
  __builtin_cpu_init();
  out[count++] = {&kAvx2Kernels, bool(__builtin_cpu_supports("avx2"))};
  out[count++] = {&kAvx512Kernels,
                  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")};
#endif
  return count;
}

}  // namespace crumb
