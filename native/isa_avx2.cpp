// AVX2, without fused multiply-add so that the bits agree: the shared kernels, compiled for this set.
#include "kernels.hpp"

namespace crumb {
namespace {
constexpr int kVectorBytes = 32;
#include "lanes.inl"
#include "gptq_sweep.inl"
#include "grid_search.inl"
}  // namespace

extern const KernelTable kAvx2Kernels = {"avx2", sweep, grid_search};
}  // namespace crumb
