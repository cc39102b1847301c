// The architecture's own baseline (SSE2 on x86-64, NEON on aarch64): the shared kernels, compiled
// for this set.
#include "kernels.hpp"
#include "tile.hpp"

namespace crumb {
namespace {
constexpr int kVectorBytes = 16;
#define CRUMB_REGISTERS "registers_baseline.inl"
#include "lanes.inl"
#include "gptq_sweep.inl"
#include "grid_search.inl"
#include "run_kernels.inl"
}  // namespace

extern const KernelTable kBaselineKernels = {"baseline", sweep, grid_search, CRUMB_RUN_KERNELS};
}  // namespace crumb
