// Rotary: the first features of each head turned in pairs by the token's position.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Rotary final : Operation {
  int in, out, heads, head_dim, dimensions;
  bool interleaved;
  const float* turns;  // (positions, dimensions): cosines, then sines

  explicit Rotary(Maker& maker)
      : in(maker.buffer("input")), out(maker.buffer("out")),
        interleaved(maker.of.flag("interleaved")) {
    const int64_t width = maker.width(in), count = maker.of.integer("heads");
    const int64_t turning = maker.of.integer("dimensions");
    require(count > 0 && width % count == 0 && maker.width(out) == width, "rotary: widths differ");
    const ArrayView table = maker.of.array("turns", Element::kFloat32, 2);
    require(table.data && turning > 0 && turning % 2 == 0 && turning <= width / count &&
                table.shape[1] == turning, "rotary: wrong dimensions");
    heads = int(count), head_dim = int(width / count), dimensions = int(turning);
    turns = static_cast<const float*>(table.data);
    Limits& limits = maker.engine.limits;
    limits.positions = std::min(limits.positions, table.shape[0]);
  }

  void run(Worker& worker) const override {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(out);
    const Share mine = worker.share(worker.rows);
    worker.kernels().rotary({from.data, to.data, from.stride, to.stride, worker.step.positions,
                             turns, heads, head_dim, dimensions, interleaved, mine.begin,
                             mine.end});
  }
};

const Register<Rotary> registered("rotary");

}  // namespace
}  // namespace crumb
