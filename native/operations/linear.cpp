// Linear: matrix products. Layers that read one buffer run together, without a barrier between.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Layer {
  int in, activations, out;  // activations -1: f32
  Matrix matrix;
  const float* bias;

  explicit Layer(Maker& maker)
      : in(maker.buffer("input")), out(maker.buffer("out")), matrix(maker.matrix("matrix")) {
    require(maker.width(in) == matrix.columns() && maker.width(out) == matrix.rows(),
            "linear: widths differ");
    bias = maker.of.floats("bias", matrix.rows(), "linear: bias has the wrong width", true);
    activations = -1;
    if (maker.of.integer("activations") < 0) return;
    require(matrix.tiles, "no activations");
    activations = maker.activations("activations");
    const Activations& x = maker.engine.activations[activations];
    require(x.columns == matrix.columns() &&
                x.block_inputs == std::min(matrix.tiles->group_width, kBlockInputs),
            "linear: activations of another width");
  }

  void run(Worker& worker) const {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(out);
    const Share mine = worker.share((matrix.rows() + 15) / 16);
    if (mine.begin == mine.end) return;
    if (activations >= 0)
      worker.kernels().matmul({*matrix.tiles, worker.activations(activations), worker.rows, bias,
                               to.data, to.stride, mine.begin, mine.end, worker.scratch});
    else
      worker.kernels().float_matmul({matrix.tiles, matrix.floats, from.data, from.stride,
                                     worker.rows, bias, to.data, to.stride, mine.begin, mine.end,
                                     worker.scratch});
    add_columns(worker, matrix, from.data, from.stride, worker.rows, to.data, to.stride, mine);
  }
};

struct Linear final : Operation {
  std::vector<Layer> layers;

  void run(Worker& worker) const override {
    for (const Layer& layer : layers) layer.run(worker);
  }
};

std::unique_ptr<Operation> make(Maker& maker) {
  const bool joined = maker.of.flag("joined");
  const Layer layer(maker);
  auto& operations = maker.engine.operations;
  require(maker.apart(layer.in, layer.out), "linear: reads what it writes");
  if (joined) {
    auto* group = operations.empty() ? nullptr : dynamic_cast<Linear*>(operations.back().get());
    require(group, "linear: nothing to join");
    for (const Layer& each : group->layers)
      require(maker.apart(layer.in, each.out) && maker.apart(layer.out, each.in) &&
                  maker.apart(layer.out, each.out),
              "linear: joined to one that writes what it reads or writes, or reads what it writes");
    group->layers.push_back(layer);
    return nullptr;
  }
  auto group = std::make_unique<Linear>();
  group->layers.push_back(layer);
  return group;
}

const Registration registered("linear", make);

}  // namespace
}  // namespace crumb
