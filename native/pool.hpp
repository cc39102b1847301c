// Threads that run one function together, each with its index, and meet at barriers.
// In: a function, which must not throw. Out: nothing until all have returned. One run at a time,
// whichever thread asks. Workers spin for a moment after a run, since the next token comes soon,
// then sleep. A forked child has none of its parent's threads: its first run starts new ones, and
// throws std::system_error where there are none to be had.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace crumb {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;

  int threads() const { return threads_; }
  // function(context, thread) on every thread, the caller being thread 0; waits for other runs.
  void run(void (*function)(void*, int), void* context);
  // All threads of a run wait for each other. What one wrote before, the others see after.
  void barrier();

 private:
  friend struct Forks;
  void start();
  void stop();
  void work(int thread, uint32_t seen);
  void lose_threads();

  const int threads_;
  std::unique_ptr<std::vector<std::thread>> workers_;  // null: to be started by the next run
  std::mutex running_;
  void (*function_)(void*, int) = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> passed_{0};
  std::atomic<bool> ending_{false};
};

}  // namespace crumb
