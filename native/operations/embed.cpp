// Embed: rows of a table, quantized or not, by token or position.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Embed final : Operation {
  bool of_positions;
  int out;
  Matrix matrix;
  int64_t first_row;

  explicit Embed(Maker& maker)
      : of_positions(maker.of.flag("of_positions")), out(maker.buffer("out")),
        matrix(maker.matrix("matrix")), first_row(maker.of.integer("first_row")) {
    require(first_row >= 0 && first_row < matrix.rows(), "embed: no such row");
    require(maker.width(out) == matrix.columns(), "embed: widths differ");
    require(!matrix.beside, "embed: float columns");
    Limits& limits = maker.engine.limits;
    int64_t& limit = of_positions ? limits.positions : limits.vocabulary;
    limit = std::min(limit, matrix.rows() - first_row);
  }

  void run(Worker& worker) const override {
    const Buffer& to = worker.buffer(out);
    const Share mine = worker.share(worker.rows);
    const int32_t* index = of_positions ? worker.step.positions : worker.step.tokens;
    worker.kernels().embed({matrix.tiles, matrix.floats, index, to.data, to.stride, mine.begin,
                            mine.end, worker.scratch, first_row});
  }
};

const Register<Embed> registered("embed");

}  // namespace
}  // namespace crumb
