// Conv: a short causal convolution of each feature, whose state is the last rows it read.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Conv final : Operation {
  int in, out;
  int64_t count, stride;
  const float *taps, *bias;
  States states;

  explicit Conv(Maker& maker) : in(maker.buffer("input")), out(maker.buffer("out")) {
    stride = maker.at(in).stride;
    require(maker.width(out) == maker.width(in) && maker.at(out).stride == stride,
            "conv: widths differ");
    const ArrayView rows = maker.of.array("taps", Element::kFloat32, 2);
    require(rows.data && rows.shape[1] == stride, "conv: taps: whole rows");
    count = rows.shape[0];
    require(count >= 2 && count <= kMostTaps, "conv: 2 to 8 taps");
    require(in == out || maker.apart(in, out), "conv: reads what it writes");
    taps = static_cast<const float*>(rows.data);
    bias = maker.of.floats("bias", stride, "conv: bias: a whole row", true);
    states = maker.states((count - 1) * stride);
  }

  void run(Worker& worker) const override {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(out);
    const Share mine = worker.share(stride / kLaneFloats);
    worker.kernels().conv({from.data, to.data, from.stride, to.stride, taps, bias, count, stride,
                           states, worker.step.runs, worker.step.run_count, mine.begin, mine.end});
  }
};

const Register<Conv> registered("conv");

}  // namespace
}  // namespace crumb
