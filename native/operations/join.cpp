// Join: several buffers' features behind each other in every outer; a narrow one is repeated.
#include <cstring>

#include "../operation.hpp"

namespace crumb {
namespace {

struct Join final : Operation {
  std::vector<int> ins;
  int out;
  std::vector<int64_t> widths;
  int64_t outer, whole = 0;

  explicit Join(Maker& maker)
      : ins(maker.buffers("inputs")), out(maker.buffer("out")), widths(maker.of.integers("widths")),
        outer(maker.of.integer("outer")) {
    const int64_t width = maker.width(out);
    require(!ins.empty() && ins.size() == widths.size(), "join: a width for each input");
    require(outer > 0 && outer <= width, "join: outer out of range");
    for (size_t part = 0; part < ins.size(); ++part) {
      require(widths[part] > 0 && widths[part] <= width, "join: widths differ");
      const int64_t given = maker.width(ins[part]);
      require(given == widths[part] || given == outer * widths[part], "join: widths differ");
      require(ins[part] != out, "join: writes what it reads");
      whole += widths[part];
      require(whole <= width, "join: widths differ");
    }
    require(whole * outer == width, "join: widths differ");
  }

  void run(Worker& worker) const override {
    const Buffer& to = worker.buffer(out);
    const Share mine = worker.share(worker.rows);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      float* begin = to.data + row * to.stride;
      for (size_t part = 0; part < ins.size(); ++part) {
        const Buffer& from = worker.buffer(ins[part]);
        const int64_t step = from.width == widths[part] ? 0 : widths[part];
        for (int64_t k = 0; k < outer; ++k)
          std::memcpy(begin + k * whole, from.data + row * from.stride + k * step,
                      widths[part] * sizeof(float));
        begin += widths[part];
      }
    }
  }
};

const Register<Join> registered("join");

}  // namespace
}  // namespace crumb
