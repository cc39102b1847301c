// Norm: groups of features over their root mean square, or with their mean taken off first.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Norm final : Operation {
  int in, out;
  int64_t groups, weight_step;
  const float *weight, *bias;
  float epsilon;
  bool centered;

  explicit Norm(Maker& maker)
      : in(maker.buffer("input")), out(maker.buffer("out")), groups(maker.of.integer("groups")),
        epsilon(maker.of.number("epsilon")), centered(maker.of.flag("centered")) {
    const int64_t width = maker.width(in);
    require(maker.width(out) == width, "norm: widths differ");
    require(groups > 0 && width % groups == 0, "norm: groups do not divide");
    const ArrayView weights = maker.of.array("weight", Element::kFloat32, 1);
    if (!weights.data) throw WrongType("norm: expected weight to be an array");
    const int64_t count = weights.shape[0];
    require(count == width / groups || count == width, "norm: widths differ");
    weight_step = count == width ? width / groups : 0;
    weight = static_cast<const float*>(weights.data);
    bias = maker.of.floats("bias", count, "norm: bias has the wrong width", true);
  }

  void run(Worker& worker) const override {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(out);
    const Share mine = worker.share(worker.rows);
    worker.kernels().norm({from.data, to.data, from.stride, to.stride, from.width / groups,
                           mine.begin, mine.end, weight, bias, epsilon, centered, groups,
                           weight_step});
  }
};

const Register<Norm> registered("norm");

}  // namespace
}  // namespace crumb
