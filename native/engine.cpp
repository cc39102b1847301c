// Runs a step: every thread walks all operations and does its share of each; between two of them
// all wait.
#include "engine.hpp"

#include <chrono>

namespace crumb {

const Buffer& Worker::buffer(int index) const { return engine.buffers[index]; }
const RunKernels& Worker::kernels() const { return engine.kernels; }
void Worker::barrier() const { engine.barrier(); }

Activations Worker::activations(int index) const {
  Activations laid = engine.activations[index];
  laid.together = lie_together(engine.kernels, rows, laid.columns);
  return laid;
}

void Engine::walk(const Step& step, int thread) {
  using Clock = std::chrono::steady_clock;
  Worker worker{*this, step, thread, threads(), step.rows, scratch_ + thread * scratch_bytes_};
  const bool times = timed && thread == 0;
  for (int64_t k = step.first; k < step.operations && worker.rows > 0; ++k) {
    const Operation& operation = *operations[k];
    const auto begin = times ? Clock::now() : Clock::time_point();
    operation.run(worker);
    pool_.barrier();
    if (!times) continue;
    const std::chrono::duration<double> taken = Clock::now() - begin;
    std::lock_guard<std::mutex> lock(counting_);
    seconds_[operation.kind] += taken.count();
  }
}

std::map<std::string, double> Engine::seconds() const {
  std::lock_guard<std::mutex> lock(counting_);
  return seconds_;
}

void Engine::run(const Step& step) {
  struct Context {
    Engine& engine;
    const Step& step;
  } context{*this, step};
  pool_.run(
      [](void* shared, int thread) {
        auto& [engine, step] = *static_cast<Context*>(shared);
        engine.walk(step, thread);
      },
      &context);
}

}  // namespace crumb
