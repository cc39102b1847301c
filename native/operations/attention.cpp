// Attention: keys and values into the pages of their sequence, then the values mixed for each query.
// Of a memory, they are there already: what "remember" wrote.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Attention final : Operation {
  bool memory;
  int query, key, value, out, heads, key_value_heads, head_dim;  // value -1: latent, or memory
  int value_dim;
  const float *sinks, *slopes, *distances;
  float scale, soft_cap, slope_factor, rate, span;
  bool causal, rounded;
  int64_t window, chunk, first, farthest;
  Cache cache;

  explicit Attention(Maker& maker)
      : memory(maker.of.flag("memory")), query(maker.buffer("query")),
        key(maker.of.integer("key") < 0 ? -1 : maker.buffer("key")),
        value(maker.of.integer("value") < 0 ? -1 : maker.buffer("value")), out(maker.buffer("out")), scale(maker.of.number("scale")),
        soft_cap(maker.of.number("soft_cap")), slope_factor(maker.of.number("slope_factor")),
        rate(maker.of.number("rate")), span(maker.of.number("span")),
        causal(maker.of.flag("causal")), rounded(maker.of.flag("rounded")),
        window(maker.of.integer("window")), chunk(maker.of.integer("chunk")),
        first(maker.of.integer("first")), farthest(maker.of.integer("farthest")) {
    Limits& limits = maker.engine.limits;
    const int64_t width = maker.width(query);
    const int64_t count = maker.of.integer("heads"), few = maker.of.integer("key_value_heads");
    require(count > 0 && few > 0 && count % few == 0 && width % count == 0,
            "attention: heads do not divide");
    const int64_t dim = width / count;
    require(limits.selected_rows == 0, "attention: behind select");
    require(window >= 0 && chunk >= 0, "attention: negative window");
    require(span > 0 && first >= 0, "attention: temperature");
    require(maker.width(out) % count == 0, "attention: widths differ");
    const int64_t mixed = maker.width(out) / count;
    require(memory ? key < 0 && value < 0 : key >= 0, "attention: keys of a memory are in it");
    require(memory || maker.width(key) == dim * few, "attention: widths differ");
    require(memory || (value < 0 ? mixed <= dim : maker.width(value) == mixed * few),
            "attention: widths differ");
    require(!memory || (!causal && window == 0 && chunk == 0), "attention: a memory is seen whole");
    value_dim = int(mixed);
    sinks = maker.of.floats("sinks", count, "attention: a sink for each head", true);
    slopes = maker.of.floats("slopes", count, "attention: a slope for each head", true);
    distances = table(maker, count);
    heads = int(count), key_value_heads = int(few), head_dim = int(dim);
    const ArrayView pages = maker.of.array("pages", Element::kUint8, 2, true);
    const int64_t kind = maker.of.integer("cache");
    require(kind == kFloat32 || kind == kFloat16 || kind == kInt8, "attention: cache kind");
    const int64_t head_bytes = cache_head_bytes(dim, int(kind), latent() ? 0 : mixed);
    require(pages.data && pages.shape[1] == head_bytes * few, "pages: wrong size");
    cache = {static_cast<uint8_t*>(pages.data), head_bytes * few, head_bytes, int(kind)};
    int64_t& count_of_pages = memory ? limits.memory_pages : limits.pages;
    count_of_pages = std::min(count_of_pages, pages.shape[0]);
    limits.has_memory |= memory;
    limits.head_dim = std::max(limits.head_dim, dim);
  }

  // What distances add to the scores of each head, its middle first of all.
  const float* table(Maker& maker, int64_t count) const {
    const ArrayView view = maker.of.array("distances", Element::kFloat32, 2);
    if (!view.data) return nullptr;
    require(farthest > 0 && view.shape[0] == count && view.shape[1] == distances_width(farthest),
            "attention: distances");
    return static_cast<const float*>(view.data);
  }
  bool latent() const { return !memory && value < 0; }

  void run(Worker& worker) const override {
    const Step& step = worker.step;
    if (!memory) {
      const Buffer& k = worker.buffer(key);
      const Buffer& v = latent() ? k : worker.buffer(value);
      worker.kernels().cache_store({k.data, v.data, k.stride, v.stride, cache, step.segments,
                                    step.segment_count, key_value_heads, head_dim, worker.thread,
                                    worker.threads, latent() ? 0 : value_dim});
      worker.barrier();
    }
    const Buffer &q = worker.buffer(query), &to = worker.buffer(out);
    worker.kernels().attention(
        {q.data, to.data, q.stride, to.stride, cache, memory ? step.memories : step.segments,
         step.segment_count, heads, key_value_heads, head_dim, scale, soft_cap, causal, window,
         worker.thread, worker.threads, reinterpret_cast<float*>(worker.scratch), value_dim,
         latent(), sinks, chunk, slopes, slope_factor, rounded, rate, span, first, distances,
         farthest});
  }
};

const Register<Attention> registered("attention");

}  // namespace
}  // namespace crumb
