// Threads that run one function together, each with its index, and meet at barriers.
// In: a function. Out: nothing until all have returned. Workers spin for a moment after a run, since
// the next token comes soon, then sleep. Never throws from a run: the function must not throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace crumb {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;

  int threads() const { return threads_; }
  // function(context, thread) on every thread, the caller being thread 0.
  void run(void (*function)(void*, int), void* context);
  // All threads of a run wait for each other. What one wrote before, the others see after.
  void barrier();

 private:
  void work(int thread);

  const int threads_;
  std::vector<std::thread> workers_;
  void (*function_)(void*, int) = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> passed_{0};
  std::atomic<bool> ending_{false};
};

}  // namespace crumb
