// What every instruction set provides. In: raw row-major arrays. Out: results written in place.
// Rows are independent and travel together, one per vector lane, so no sum crosses lanes and every
// instruction set produces the same bits as the Python reference.
// Plain pointers and integers only: files compiled with different flags share no templates.
#pragma once

#include <cstdint>
#include <new>

#include "run_kernels.hpp"

namespace crumb {

constexpr int64_t kMostLevels = 16;  // of a table
constexpr float kRoundLimit = 1024.0f;  // same as formats/grid.py ROUND_LIMIT


// One block of columns of GPTQ; see solve/gptq.py for the symbols.
struct Sweep {
  const float* start;     // (rows, columns) weights plus what earlier blocks' errors add
  const float* weights;   // (rows, columns) the weights to approximate
  const float* factor;    // (columns, columns) unit upper triangle of the block
  const float* scale;     // (rows, groups)
  const float* offset;    // (rows, groups) zero point or minimum
  const int32_t* group;   // (columns) group of each column
  uint8_t* codes;         // (rows, columns) out; null leaves weights unrounded
  float* error;           // (rows, columns) out: weights minus what was chosen
  int64_t rows, columns, groups;
  int largest_code;
  int zero;               // ZeroKind
  const float* levels;    // (level_count) what codes stand for, ascending; null: themselves
  int64_t level_count;
};

// Search of each group's scale and offset under a diagonal weight.
struct GridSearch {
  const float* weights;     // (rows, columns)
  const float* importance;  // (columns) diagonal of H
  const float* shrinks;     // (shrink_count) factors on the min-max scale
  float* scale;             // (rows, groups) out
  float* offset;            // (rows, groups) out
  int64_t rows, columns, group_width;
  int shrink_count;
  int bits;
  int zero;  // ZeroKind
  const float* levels;  // as Sweep's
  int64_t level_count;
};

struct KernelTable {
  const char* name;
  void (*sweep)(const Sweep&);
  void (*grid_search)(const GridSearch&);
  RunKernels run;
};

extern const KernelTable kBaselineKernels;
#ifdef CRUMB_X86
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAmxKernels;
#endif
#ifdef CRUMB_NEON
extern const KernelTable kNeonDotprodKernels;
extern const KernelTable kNeonI8mmKernels;
#endif

// Whether the processor itself fetches a stream of codes ahead, and being told costs it bandwidth.
extern const bool kFetchesAhead;

struct Choice {
  const KernelTable* table;
  bool supported;
  const char* needs;  // of the processor, as Linux names its features
};
constexpr int kMaxChoices = 4;
// Every compiled instruction set, slowest first, and whether this machine can run it.
int list_choices(Choice out[kMaxChoices]);

void pack_codes(const uint8_t* codes, uint8_t* packed, int64_t rows, int64_t count, int bits);
void unpack_codes(const uint8_t* packed, uint8_t* codes, int64_t rows, int64_t count, int bits);

}  // namespace crumb
