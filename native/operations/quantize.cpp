// Quantize: f32 features to int8 activations, once for all linear layers that read them.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Quantize final : Operation {
  int in, to;

  explicit Quantize(Maker& maker)
      : in(maker.buffer("input")), to(maker.activations("activations")) {
    require(maker.width(in) == maker.engine.activations[to].columns, "quantize: widths differ");
  }

  void run(Worker& worker) const override {
    const Buffer& from = worker.buffer(in);
    const Activations activations = worker.activations(to);
    const Share mine = worker.share(worker.rows * scale_count(activations));
    worker.kernels().quantize({from.data, from.stride, activations, mine.begin, mine.end});
  }
};

const Register<Quantize> registered("quantize");

}  // namespace
}  // namespace crumb
