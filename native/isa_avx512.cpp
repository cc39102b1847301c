// AVX-512 F, BW, DQ, VL: the shared kernels, compiled for this set.
#include "kernels.hpp"

namespace crumb {
namespace {
constexpr int kVectorBytes = 64;
#include "lanes.inl"
#include "gptq_sweep.inl"
#include "grid_search.inl"
}  // namespace

extern const KernelTable kAvx512Kernels = {"avx512", sweep, grid_search};
}  // namespace crumb
