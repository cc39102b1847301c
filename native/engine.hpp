// The native executor: a Plan's operations over buffers, run without Python between them.
// In: operations added once, in order; then steps of tokens. Out: the buffers they write.
// Owns its threads and operations, nothing else: weights, buffers, cache and scratch belong to the
// caller and outlive it. Each operation checks its sizes when it is made (operation.hpp).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
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
  const FloatColumns* beside = nullptr;  // of tiles
  int64_t rows() const { return tiles ? tiles->rows : floats->rows; }
  int64_t columns() const { return tiles ? tiles->columns : floats->columns; }
};

struct Step {
  const int32_t* tokens;
  const int32_t* positions;
  int64_t rows;
  const Segment* segments;
  int64_t segment_count;
  const int32_t* selected;  // rows that "select" passes on
  int64_t selected_count;
  int64_t operations;  // that are run: up to here
  int64_t first = 0;   // and from here
  const StateRun* runs = nullptr;  // of all segments, through what keeps a state
  int64_t run_count = 0;
  const Segment* memories = nullptr;  // of each segment: where what its sequence has read lies
};

// What a step may hold; operations narrow it as they are added.
struct Limits {
  int64_t capacity = 0;       // rows of a step: those of the first buffer
  int64_t selected_rows = 0;  // rows behind "select", 0 before it is added
  int64_t head_dim = 0;       // of the widest attention
  int64_t vocabulary = INT32_MAX, positions = INT32_MAX, pages = INT32_MAX;
  int64_t memory_pages = INT32_MAX;
  int64_t states = INT32_MAX;  // places of a sequence's state
  bool has_memory = false, fills_memory = false, keeps_state = false;
  int64_t rows() const { return selected_rows ? selected_rows : capacity; }
};

// Operations before `end` that run in steps of their own, behind those of the section before.
struct Section {
  int64_t end;
  Limits limits;
};

struct Share {
  int64_t begin, end;
};

class Engine;

// One thread's view of a step.
struct Worker {
  Engine& engine;
  const Step& step;
  const int thread, threads;
  int64_t rows;  // of the step, or those that were selected
  uint8_t* scratch;

  Share share(int64_t count) const {
    return {count * thread / threads, count * (thread + 1) / threads};
  }
  const Buffer& buffer(int index) const;
  const RunKernels& kernels() const;
  // Activations as this step's matmul wants them to lie.
  Activations activations(int index) const;
  void barrier() const;
};

class Operation {
 public:
  virtual ~Operation() = default;
  // This thread's share; whole outputs, so the number of threads changes no bit of any result.
  virtual void run(Worker& worker) const = 0;
  const char* kind = "";
};

class Engine {
 public:
  Engine(const KernelTable& kernels, int threads, uint8_t* scratch, int64_t scratch_bytes)
      : kernels(kernels.run), pool_(threads), scratch_(scratch), scratch_bytes_(scratch_bytes) {}

  const RunKernels kernels;
  std::vector<Buffer> buffers;
  std::vector<Matrix> matrices;
  std::vector<Activations> activations;
  std::vector<int64_t> activation_rows;  // of each of them
  std::vector<std::unique_ptr<Operation>> operations;
  Limits limits;  // of the section that operations are added to
  std::vector<Section> sections;  // those before it
  std::atomic<bool> timed{false};

  // One step at a time, whichever thread asks. Throws std::system_error as Pool::run does.
  void run(const Step& step);
  int threads() const { return pool_.threads(); }
  int64_t scratch_bytes() const { return scratch_bytes_; }
  void barrier() { pool_.barrier(); }
  // Seconds by kind of operation since `timed` was set.
  std::map<std::string, double> seconds() const;

 private:
  void walk(const Step& step, int thread);

  Pool pool_;
  uint8_t* scratch_;  // threads * scratch_bytes
  int64_t scratch_bytes_;
  std::map<std::string, double> seconds_;  // written by thread 0 of a step
  mutable std::mutex counting_;
};

}  // namespace crumb
