// AVX-512 F, BW, DQ, VL and VNNI: the shared kernels, compiled for this set.
#include <immintrin.h>

#include "kernels.hpp"
#include "tile.hpp"

namespace crumb {
namespace {
constexpr int kVectorBytes = 64;
#define CRUMB_REGISTERS "registers_avx512.inl"
#include "lanes.inl"
#include "gptq_sweep.inl"
#include "grid_search.inl"
#include "run_kernels.inl"
}  // namespace

extern const KernelTable kAvx512Kernels = {"avx512", sweep, grid_search, CRUMB_RUN_KERNELS};
}  // namespace crumb
