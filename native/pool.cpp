// The pool's threads: spin, then sleep on the round's number.
// The barrier counts arrivals; the last one opens the next phase.
#include "pool.hpp"

namespace crumb {
namespace {

constexpr int kSpinsBeforeSleep = 20000;  // about 0.3 ms: longer than sampling a token takes
constexpr int kSpinsBeforeYield = 2000;   // a thread of the run was put off its processor

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads) {
  try {
    for (int thread = 1; thread < threads_; ++thread)
      workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {  // no more threads to be had: those that started must end before the error leaves
    ending_.store(true);
    round_.fetch_add(1);
    round_.notify_all();
    for (auto& worker : workers_) worker.join();
    throw;
  }
}

Pool::~Pool() {
  ending_.store(true, std::memory_order_release);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run(void (*function)(void*, int), void* context) {
  function_ = function;
  context_ = context;
  if (threads_ > 1) {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }
  function(context, 0);
  barrier();
}

void Pool::barrier() {
  if (threads_ == 1) return;
  const uint32_t phase = passed_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; passed_.load(std::memory_order_acquire) == phase; ++spins) {
    if (spins < kSpinsBeforeYield)
      relax();
    else
      std::this_thread::yield();
  }
}

void Pool::work(int thread) {
  uint32_t seen = 0;
  while (true) {
    for (int spins = 0; round_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins < kSpinsBeforeSleep)
        relax();
      else
        round_.wait(seen, std::memory_order_acquire);
    }
    ++seen;
    if (ending_.load(std::memory_order_acquire)) return;
    function_(context_, thread);
    barrier();
  }
}

}  // namespace crumb
