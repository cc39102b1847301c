// NEON with dot products of signed bytes: the shared kernels, compiled for this set.
#include <arm_neon.h>

#include "kernels.hpp"
#include "tile.hpp"

namespace crumb {
namespace {
constexpr int kVectorBytes = 16;
#define CRUMB_REGISTERS "registers_neon.inl"
#include "lanes.inl"
#include "gptq_sweep.inl"
#include "grid_search.inl"
#include "run_kernels.inl"
}  // namespace

extern const KernelTable kNeonDotprodKernels = {"neon-dotprod", sweep, grid_search, CRUMB_RUN_KERNELS};
}  // namespace crumb
