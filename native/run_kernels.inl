// Every kernel that runs a model, for the set that includes this. Out: CRUMB_RUN_KERNELS.
// In: CRUMB_REGISTERS names its file of registers, CRUMB_MATMUL its own matmul if it has one.
#include "wide.inl"
#include "math.inl"
#include "unpack.inl"
#include "tile_matmul.inl"
#include "super_matmul.inl"
#include "strip_matmul.inl"
#include "super_strip.inl"
#include "matmul.inl"
#include "float_expand.inl"
#include "float_matmul.inl"
#include "float_columns.inl"
#include "rows.inl"
#include "tilt.inl"
#include "attention.inl"
#include "recurrence.inl"
#include "matrix_state.inl"
#include "wkv_matrix.inl"

#ifndef CRUMB_MATMUL
#define CRUMB_MATMUL tile_matmul
#define CRUMB_FEW_TOKENS kMostFusedTokens
#define CRUMB_TOGETHER_FROM INT64_MAX
#endif

#define CRUMB_RUN_KERNELS                                                                    \
  {CRUMB_FEW_TOKENS, CRUMB_TOGETHER_FROM, quantize_activations, CRUMB_MATMUL, float_matmul,  \
   add_columns, embed_rows, normalize, elementwise, rotate, store_cache, attention,          \
   convolve<2>, run_wkv, run_matrix_state, run_wkv_matrix}
