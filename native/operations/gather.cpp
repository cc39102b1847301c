// Gather: column k of the output is column order[k] of the input, for a matrix whose columns stand
// in another order.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Gather final : Operation {
  int in, out;
  const int32_t* order;

  explicit Gather(Maker& maker) : in(maker.buffer("input")), out(maker.buffer("out")) {
    const int64_t width = maker.width(in);
    const ArrayView columns = maker.of.array("order", Element::kInt32, 1);
    require(columns.data && in != out && maker.width(out) == width && columns.shape[0] == width,
            "gather: widths differ");
    order = static_cast<const int32_t*>(columns.data);
    for (int64_t k = 0; k < width; ++k)
      require(order[k] >= 0 && order[k] < width, "gather: column out of range");
  }

  void run(Worker& worker) const override {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(out);
    const Share mine = worker.share(worker.rows * to.width);
    for (int64_t k = mine.begin; k < mine.end; ++k) {
      const int64_t row = k / to.width, column = k % to.width;
      to.data[row * to.stride + column] = from.data[row * from.stride + order[column]];
    }
  }
};

const Register<Gather> registered("gather");

}  // namespace
}  // namespace crumb
