// The native executor: a Plan's operations over buffers, run without Python between them.
// In: operations added once, in order; then steps of tokens. Out: the buffers they write.
// Owns its threads, nothing else: weights, buffers, cache and scratch belong to the caller and
// outlive it. Sizes were checked by engine_bindings.cpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

namespace crumb {

struct Buffer {
  float* data;  // (rows, stride)
  int64_t rows, width, stride;
};

struct Matrix {
  const TileMatrix* tiles = nullptr;  // one of the two
  const FloatMatrix* floats = nullptr;
  int64_t rows() const { return tiles ? tiles->rows : floats->rows; }
  int64_t columns() const { return tiles ? tiles->columns : floats->columns; }
};

struct Embed {
  bool of_positions;
  int out;
  Matrix matrix;
};
struct Norm {
  int in, out;
  const float* weight;
  const float* bias;
  float epsilon;
  bool centered;
};
struct Quantize {
  int in, activations;
};
// Linear layers that read one buffer run together, without a barrier between them.
struct Linear {
  int in, activations, out;  // activations -1: f32
  Matrix matrix;
  const float* bias;
};
struct LinearGroup {
  std::vector<Linear> linears;
};
struct Split {
  int in;
  std::vector<int> outs;
  int64_t outer, inner;
};
struct Rotary {
  int in, out, heads, head_dim, dimensions;
  bool interleaved;
  const float* turns;
};
struct Attention {
  int query, key, value, out, heads, key_value_heads, head_dim;
  float scale, soft_cap;
  bool causal;
  int64_t window;
  Cache cache;
};
struct Elementwise {
  int left, right, out, kind;  // right -1: an activation alone
};
// Keeps the rows whose outputs are wanted; operations after it run on these alone.
struct Select {
  int in, out;
};
// Column k of `out` is column order[k] of `in`: for a matrix whose columns stand in another order.
struct Gather {
  int in, out;
  const int32_t* order;
};
using Operation = std::variant<Embed, Norm, Quantize, LinearGroup, Split, Rotary, Attention,
                               Elementwise, Select, Gather>;

struct Step {
  const int32_t* tokens;
  const int32_t* positions;
  int64_t rows;
  const Segment* segments;
  int64_t segment_count;
  const int32_t* selected;  // rows kept by Select
  int64_t selected_count;
  int64_t operations;  // how many are run
};

class Engine {
 public:
  Engine(const KernelTable& kernels, int threads, uint8_t* scratch, int64_t scratch_bytes)
      : kernels_(kernels.run), pool_(threads), scratch_(scratch), scratch_bytes_(scratch_bytes),
        seconds_(std::variant_size_v<Operation>) {}

  std::vector<Buffer> buffers;
  std::vector<Activations> activations;
  std::vector<Operation> operations;
  std::atomic<bool> timed{false};

  // One step at a time, whichever thread asks. Throws std::system_error as Pool::run does.
  void run(const Step& step);
  int threads() const { return pool_.threads(); }
  int64_t scratch_bytes() const { return scratch_bytes_; }
  // Seconds of each kind of operation since `timed` was set, by index in Operation.
  std::vector<double> seconds() const { return {seconds_.begin(), seconds_.end()}; }

 private:
  friend struct Worker;
  const RunKernels kernels_;
  Pool pool_;
  uint8_t* scratch_;  // threads * scratch_bytes
  int64_t scratch_bytes_;
  std::vector<std::atomic<double>> seconds_;  // written by thread 0 of a step
};

}  // namespace crumb
