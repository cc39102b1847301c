// Remember: keys and values of what a sequence has read, into the pages of its memory.
// "attention" of a memory reads them, in steps of a later section.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Remember final : Operation {
  int key, value, heads, head_dim, value_dim;
  Cache cache;

  explicit Remember(Maker& maker) : key(maker.buffer("key")), value(maker.buffer("value")) {
    Limits& limits = maker.engine.limits;
    const int64_t count = maker.of.integer("heads");
    require(limits.selected_rows == 0, "remember: behind select");
    require(count > 0 && maker.width(key) % count == 0 && maker.width(value) % count == 0,
            "remember: heads do not divide");
    heads = int(count);
    head_dim = int(maker.width(key) / count), value_dim = int(maker.width(value) / count);
    const ArrayView pages = maker.of.array("pages", Element::kUint8, 2, true);
    const int64_t kind = maker.of.integer("cache");
    require(kind == kFloat32 || kind == kFloat16 || kind == kInt8, "remember: cache kind");
    const int64_t head_bytes = cache_head_bytes(head_dim, int(kind), value_dim);
    require(pages.data && pages.shape[1] == head_bytes * count, "pages: wrong size");
    cache = {static_cast<uint8_t*>(pages.data), head_bytes * count, head_bytes, int(kind)};
    limits.memory_pages = std::min(limits.memory_pages, pages.shape[0]);
    limits.has_memory = limits.fills_memory = true;
  }

  void run(Worker& worker) const override {
    const Buffer &k = worker.buffer(key), &v = worker.buffer(value);
    worker.kernels().cache_store({k.data, v.data, k.stride, v.stride, cache, worker.step.memories,
                                  worker.step.segment_count, heads, head_dim, worker.thread,
                                  worker.threads, value_dim});
  }
};

const Register<Remember> registered("remember");

}  // namespace
}  // namespace crumb
