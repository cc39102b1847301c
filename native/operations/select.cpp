// Select: passes on the rows whose outputs are asked for; operations behind it run on these alone.
#include <cstring>

#include "../operation.hpp"

namespace crumb {
namespace {

struct Select final : Operation {
  int in, out;

  explicit Select(Maker& maker) {
    Limits& limits = maker.engine.limits;
    require(limits.selected_rows == 0, "select: a second one");
    in = maker.buffer("input"), out = maker.any_buffer("out");
    const Buffer &from = maker.at(in), &to = maker.at(out);
    require(from.width == to.width && from.stride == to.stride, "select: widths differ");
    limits.selected_rows = to.rows;
  }

  void run(Worker& worker) const override {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(out);
    worker.rows = worker.step.selected_count;
    const Share mine = worker.share(worker.rows);
    for (int64_t row = mine.begin; row < mine.end; ++row)
      std::memcpy(to.data + row * to.stride, from.data + worker.step.selected[row] * from.stride,
                  from.stride * sizeof(float));
  }
};

const Register<Select> registered("select");

}  // namespace
}  // namespace crumb
