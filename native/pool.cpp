// The pool's threads: spin, then sleep on the round's number.
// The barrier counts arrivals; the last one opens the next phase.
// After a fork the child's copy of each pool forgets its threads, which only the parent has.
#include "pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <new>

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

// All pools of the process. Held while it forks, so that the child finds the list whole.
struct Forks {
  std::mutex lock;
  std::vector<Pool*> pools;

  static Forks& all() {
    static Forks* forks = new Forks;  // never destroyed: a pool may end after static objects do
    return *forks;
  }
  Forks() {
    const int failed = pthread_atfork(
        [] { all().lock.lock(); }, [] { all().lock.unlock(); },
        [] {
          for (Pool* pool : all().pools) pool->lose_threads();
          all().lock.unlock();
        });
    if (failed) throw std::bad_alloc();
  }
  void add(Pool* pool) {
    std::lock_guard<std::mutex> held(lock);
    pools.push_back(pool);
  }
  void remove(Pool* pool) {
    std::lock_guard<std::mutex> held(lock);
    pools.erase(std::find(pools.begin(), pools.end(), pool));
  }
};

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads) {
  Forks::all().add(this);
  try {
    start();
  } catch (...) {
    Forks::all().remove(this);
    throw;
  }
}

Pool::~Pool() {
  Forks::all().remove(this);
  stop();
}

void Pool::start() {
  workers_ = std::make_unique<std::vector<std::thread>>();
  const uint32_t seen = round_.load(std::memory_order_relaxed);
  try {
    for (int thread = 1; thread < threads_; ++thread)
      workers_->emplace_back([this, thread, seen] { work(thread, seen); });
  } catch (...) {  // no more threads to be had: those that started must end before the error leaves
    stop();
    throw;
  }
}

void Pool::stop() {
  if (!workers_) return;
  ending_.store(true, std::memory_order_release);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (auto& worker : *workers_) worker.join();
  workers_.reset();
  ending_.store(false, std::memory_order_relaxed);
}

// In a forked child, before anything else of it runs. What a run of another thread held or was
// writing stays as it was; handles of threads that are not here are neither joined nor destroyed.
void Pool::lose_threads() {
  (void)workers_.release();
  new (&running_) std::mutex;  // the old one may be held by a thread that is not here
  arrived_.store(0, std::memory_order_relaxed);
}

void Pool::run(void (*function)(void*, int), void* context) {
  std::lock_guard<std::mutex> held(running_);
  if (!workers_) start();
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

void Pool::work(int thread, uint32_t seen) {
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
