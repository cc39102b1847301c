// AVX2 with FMA and F16C: the shared kernels, compiled for this set.
#include <immintrin.h>

#include "kernels.hpp"
#include "tile.hpp"

namespace crumb {
namespace {
constexpr int kVectorBytes = 32;
#define CRUMB_REGISTERS "registers_avx2.inl"
#include "lanes.inl"
#include "gptq_sweep.inl"
#include "grid_search.inl"
#include "run_kernels.inl"
}  // namespace

extern const KernelTable kAvx2Kernels = {"avx2", sweep, grid_search, CRUMB_RUN_KERNELS};
}  // namespace crumb
