// The pool: every thread runs each function once, and no thread passes a barrier before all are
// there. In: 1 to 8 threads, more than the machine has. Out: a line where a count is wrong.
#include "check.hpp"
#include "pool.hpp"

namespace crumb::check {
namespace {

constexpr int kMostThreads = 8;

// Plain memory: a sanitizer sees where the barrier does not order it.
struct Work {
  Pool& pool;
  int barriers;
  int64_t phase[kMostThreads] = {};
  int64_t calls[kMostThreads] = {};
  int64_t behind = 0;  // written by thread 0 alone

  void operator()(int thread) {
    ++calls[thread];
    for (int k = 0; k < barriers; ++k) {
      ++phase[thread];
      pool.barrier();
      if (thread == 0)
        for (int other = 0; other < pool.threads(); ++other) behind += phase[other] != phase[0];
      pool.barrier();
    }
  }
};

void check_threads(int threads, int runs, int barriers) {
  Pool pool(threads);
  Work work{pool, barriers};
  for (int k = 0; k < runs; ++k)
    pool.run([](void* given, int thread) { (*static_cast<Work*>(given))(thread); }, &work);
  for (int thread = 0; thread < threads; ++thread)
    expect(work.calls[thread] == runs && work.phase[thread] == int64_t(runs) * barriers, [&] {
      return text("pool: thread %d of %d ran %lld of %d times", thread, threads,
                  (long long)work.calls[thread], runs);
    });
  expect(work.behind == 0, [&] {
    return text("pool: of %d threads, one passed a barrier early %lld times", threads,
                (long long)work.behind);
  });
}

}  // namespace

void check_pool(const Sets&) {
  for (int threads = 1; threads <= kMostThreads; ++threads) {
    check_threads(threads, 50, 20);
    check_threads(threads, 200, 0);
    for (int k = 0; k < 5; ++k) Pool unused(threads);
  }
  expect(Pool(0).threads() == 1, [] { return std::string("pool: 0 threads must be 1"); });
}

}  // namespace crumb::check
