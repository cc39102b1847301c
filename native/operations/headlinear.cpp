// HeadLinear: each head's features times a matrix of its own. A step reads every matrix once; the
// rows of a head are those of all tokens, in their order.
#include "../grouping.hpp"

namespace crumb {
namespace {

struct HeadLinear final : Operation {
  int in, out, rows, mixed;
  std::vector<GroupMatrix> of;
  int64_t in_features, out_features, most_pairs;
  int32_t* groups;
  bool gathers, writes_through;

  explicit HeadLinear(Maker& maker)
      : in(maker.buffer("input")), out(maker.buffer("out")), rows(maker.any_buffer("rows")),
        mixed(maker.any_buffer("mixed")), in_features(maker.width(rows)),
        out_features(maker.width(mixed)) {
    const std::vector<int64_t> activations = grouped_activations(maker, 0);
    for (const int64_t index : maker.of.integers("matrices")) {
      require(index >= 0 && index < int64_t(maker.engine.matrices.size()), "no such matrix");
      const Matrix matrix = maker.engine.matrices[index];
      require(matrix.columns() == in_features && matrix.rows() == out_features,
              "headlinear: widths differ");
      of.push_back({matrix, activations_for(maker.engine, matrix, activations)});
    }
    const int64_t heads = int64_t(of.size());
    require(heads > 0 && maker.width(in) == heads * in_features &&
                maker.width(out) == heads * out_features, "headlinear: widths differ");
    most_pairs = maker.engine.limits.rows() * heads;
    const int64_t needed = grouped_rows(most_pairs, heads);
    grouped_activations(maker, needed);
    for (const int a : {rows, mixed}) {
      require(maker.at(a).rows >= needed, "headlinear: too few rows");
      require(maker.apart(a, in) && maker.apart(a, out), "headlinear: reads what it writes");
    }
    require(maker.apart(rows, mixed) && maker.apart(in, out), "headlinear: reads what it writes");
    const ArrayView memory = maker.of.array("groups", Element::kInt32, 1, true);
    require(memory.data && memory.shape[0] >= grouping_integers(most_pairs, heads),
            "headlinear: groups: too small");
    groups = static_cast<int32_t*>(memory.data);
    // Kernels read and write whole vectors: a head's features that are some stay where they are.
    const bool floats = std::any_of(of.begin(), of.end(),
                                    [](const GroupMatrix& m) { return m.reads_floats(); });
    gathers = in_features % 16 != 0 || floats;
    writes_through = out_features % 16 == 0;
  }

  void run(Worker& worker) const override {
    const int64_t heads = int64_t(of.size()), pairs = worker.rows * heads;
    const Grouping grouping(groups, most_pairs, heads);
    if (worker.thread == 0)
      grouping.deal(pairs, heads, worker.kernels().together_from,
                    [&](int64_t pair) { return pair % heads; });
    worker.barrier();
    grouping.share_rows(worker, pairs, [&](int64_t head, int64_t begin, int64_t end) {
      read_rows(worker, grouping, head, begin, end);
    });
    worker.barrier();
    grouping.share_tiles(worker, (out_features + 15) / 16,
                         [&](int64_t head, int64_t begin, int64_t end) {
                           multiply(worker, grouping, head, begin, end);
                         });
    if (writes_through) return;
    worker.barrier();
    write_rows(worker, grouping);
  }

 private:
  void read_rows(const Worker& worker, const Grouping& grouping, int64_t head, int64_t begin,
                 int64_t end) const {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(rows);
    const int64_t first = grouping.first[head], feature = head * in_features;
    for (int64_t row = first + begin; gathers && row < first + end; ++row)
      std::copy_n(from.data + grouping.token[row] * from.stride + feature, in_features,
                  to.data + row * to.stride);
    if (of[head].activations < 0) return;
    const Activations x = rows_of(worker, of[head].activations, first, grouping.count[head]);
    if (gathers)
      quantize_rows(worker, x, to.data + first * to.stride, to.stride, nullptr, begin, end);
    else
      quantize_rows(worker, x, from.data + feature, from.stride, grouping.token + first, begin, end);
  }

  void multiply(const Worker& worker, const Grouping& grouping, int64_t head, int64_t begin,
                int64_t end) const {
    const Buffer &x = worker.buffer(rows), &to = worker.buffer(writes_through ? out : mixed);
    const int64_t first = grouping.first[head];
    float* y = to.data + (writes_through ? head * out_features : first * to.stride);
    multiply_rows(worker, of[head], first, grouping.count[head], x.data + first * x.stride,
                  x.stride, nullptr, y, to.stride, begin, end);
  }

  void write_rows(const Worker& worker, const Grouping& grouping) const {
    const Buffer &from = worker.buffer(mixed), &to = worker.buffer(out);
    const int64_t heads = int64_t(of.size());
    const Share mine = worker.share(worker.rows);
    for (int64_t token = mine.begin; token < mine.end; ++token)
      for (int64_t head = 0; head < heads; ++head)
        std::copy_n(from.data + grouping.place[token * heads + head] * from.stride, out_features,
                    to.data + token * to.stride + head * out_features);
  }
};

const Register<HeadLinear> registered("headlinear");

}  // namespace
}  // namespace crumb
