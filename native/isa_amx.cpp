// AVX-512 as in isa_avx512.cpp, and AMX for many tokens: the shared kernels, compiled for this set.
#include <immintrin.h>
#ifdef CRUMB_EMULATES_AMX
#include "amx_emulation.hpp"
#endif

#include "kernels.hpp"
#include "tile.hpp"

namespace crumb {
namespace {
constexpr int kVectorBytes = 64;
#define CRUMB_REGISTERS "registers_avx512.inl"
#include "lanes.inl"
#include "gptq_sweep.inl"
#include "grid_search.inl"
#define CRUMB_MATMUL amx_matmul
#define CRUMB_FEW_TOKENS kAmxTokens - 1
#define CRUMB_TOGETHER_FROM kAmxTokens
#include "run_kernels.inl"
#include "amx_tiles.inl"
#include "amx_join.inl"
#include "amx_super.inl"
#include "amx_matmul.inl"
}  // namespace

extern const KernelTable kAmxKernels = {"amx", sweep, grid_search, CRUMB_RUN_KERNELS};
}  // namespace crumb
