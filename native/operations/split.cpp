// Split: one buffer's features, (outer, parts, inner), dealt out to a buffer for each part.
#include <cstring>

#include "../operation.hpp"

namespace crumb {
namespace {

struct Split final : Operation {
  int in;
  std::vector<int> outs;
  int64_t outer, inner;

  explicit Split(Maker& maker)
      : in(maker.buffer("input")), outs(maker.buffers("outs")), outer(maker.of.integer("outer")),
        inner(maker.of.integer("inner")) {
    const int64_t width = maker.width(in), parts = int64_t(outs.size());
    require(outer > 0 && inner > 0 && parts > 0, "split: empty");
    require(outer <= width && inner <= width && parts <= width && width == outer * inner * parts,
            "split: widths differ");
    for (int out : outs) require(maker.width(out) == outer * inner, "split: widths differ");
  }

  void run(Worker& worker) const override {
    const Buffer& from = worker.buffer(in);
    const Share mine = worker.share(worker.rows);
    const int64_t parts = int64_t(outs.size());
    for (int64_t row = mine.begin; row < mine.end; ++row)
      for (int64_t part = 0; part < parts; ++part) {
        const Buffer& to = worker.buffer(outs[part]);
        for (int64_t k = 0; k < outer; ++k)
          std::memcpy(to.data + row * to.stride + k * inner,
                      from.data + row * from.stride + (k * parts + part) * inner,
                      inner * sizeof(float));
      }
  }
};

const Register<Split> registered("split");

}  // namespace
}  // namespace crumb
