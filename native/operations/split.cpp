// Split: one buffer's features, (outer, parts of any width), dealt out to a buffer for each part.
#include <cstring>

#include "../operation.hpp"

namespace crumb {
namespace {

struct Split final : Operation {
  int in;
  std::vector<int> outs;
  std::vector<int64_t> widths;
  int64_t outer, whole = 0;

  explicit Split(Maker& maker)
      : in(maker.buffer("input")), outs(maker.buffers("outs")), widths(maker.of.integers("widths")),
        outer(maker.of.integer("outer")) {
    const int64_t width = maker.width(in);
    require(!outs.empty() && outs.size() == widths.size(), "split: a width for each output");
    require(outer > 0 && outer <= width, "split: outer out of range");
    for (size_t part = 0; part < outs.size(); ++part) {
      require(widths[part] > 0 && widths[part] <= width, "split: widths differ");
      require(maker.width(outs[part]) == outer * widths[part], "split: widths differ");
      whole += widths[part];
      require(whole <= width, "split: widths differ");
    }
    require(whole * outer == width, "split: widths differ");
  }

  void run(Worker& worker) const override {
    const Buffer& from = worker.buffer(in);
    const Share mine = worker.share(worker.rows);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const float* begin = from.data + row * from.stride;
      for (size_t part = 0; part < outs.size(); ++part) {
        const Buffer& to = worker.buffer(outs[part]);
        const int64_t width = widths[part];
        for (int64_t k = 0; k < outer; ++k)
          std::memcpy(to.data + row * to.stride + k * width, begin + k * whole,
                      width * sizeof(float));
        begin += width;
      }
    }
  }
};

const Register<Split> registered("split");

}  // namespace
}  // namespace crumb
