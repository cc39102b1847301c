// Experts: gated MLPs of which each token uses a few. Rows are grouped by expert, so that a step
// reads an expert's weights once, and none of an expert that no token uses. An output is one
// token's: its experts' rows are added in the order of its slots, whoever else uses them.
#include "../grouping.hpp"

namespace crumb {
namespace {

struct Role {  // gate, up or down of all experts
  std::vector<GroupMatrix> of;
  const float* bias = nullptr;  // (experts, out_features)
  int64_t in_features, out_features;

  Role(Maker& maker, const char* name, const char* bias_name,
       const std::vector<int64_t>& activations, int64_t in_features, int64_t out_features)
      : in_features(in_features), out_features(out_features) {
    for (const int64_t index : maker.of.integers(name)) {
      require(index >= 0 && index < int64_t(maker.engine.matrices.size()), "no such matrix");
      const Matrix matrix = maker.engine.matrices[index];
      require(matrix.columns() == in_features && matrix.rows() == out_features,
              "experts: widths differ");
      of.push_back({matrix, activations_for(maker.engine, matrix, activations)});
    }
    const ArrayView view = maker.of.array(bias_name, Element::kFloat32, 2);
    require(!view.data || (view.shape[0] == int64_t(of.size()) && view.shape[1] == out_features),
            "experts: bias has the wrong shape");
    bias = static_cast<const float*>(view.data);
  }
  const float* bias_of(int64_t expert) const { return bias ? bias + expert * out_features : nullptr; }
  bool reads_floats() const {
    return std::any_of(of.begin(), of.end(), [](const GroupMatrix& m) { return m.reads_floats(); });
  }
};

struct Experts final : Operation {
  int in, shares, chosen, out, rows, gates, ups, mixed;
  int64_t used, most_pairs;
  std::vector<int64_t> activations;
  Role gate, up, down;
  int32_t* groups;
  ElementwiseJob activation{};
  bool shares_first, gathers;

  explicit Experts(Maker& maker)
      : in(maker.buffer("input")), shares(maker.buffer("shares")), chosen(maker.buffer("chosen")),
        out(maker.buffer("out")), rows(maker.any_buffer("rows")), gates(maker.any_buffer("gates")),
        ups(maker.any_buffer("ups")), mixed(maker.any_buffer("mixed")), used(maker.width(chosen)),
        most_pairs(maker.engine.limits.rows() * used),
        activations(grouped_activations(maker, 0)),
        gate(maker, "gate", "gate_bias", activations, maker.width(in), maker.width(gates)),
        up(maker, "up", "up_bias", activations, maker.width(in), maker.width(gates)),
        down(maker, "down", "down_bias", activations, maker.width(gates), maker.width(out)),
        shares_first(maker.of.flag("shares_first")) {
    const int64_t experts = int64_t(gate.of.size()), needed = grouped_rows(most_pairs, experts);
    grouped_activations(maker, needed);
    require(experts > 0 && up.of.size() == gate.of.size() && down.of.size() == gate.of.size(),
            "experts: a gate, an up and a down for each");
    require(used <= experts && maker.width(shares) == used, "experts: widths differ");
    require(maker.width(rows) == maker.width(in) && maker.width(ups) == maker.width(gates) &&
                maker.width(mixed) == maker.width(out), "experts: widths differ");
    const int of_rows[] = {rows, gates, ups, mixed}, others[] = {in, shares, chosen, out};
    for (int a : of_rows) {
      require(maker.at(a).rows >= needed, "experts: too few rows");
      for (int b : others) require(maker.apart(a, b), "experts: reads what it writes");
      for (int b : of_rows) require(a == b || maker.apart(a, b), "experts: reads what it writes");
    }
    for (int b : {in, shares, chosen})
      require(maker.apart(out, b), "experts: reads what it writes");
    const ArrayView memory = maker.of.array("groups", Element::kInt32, 1, true);
    require(memory.data && memory.shape[0] >= grouping_integers(most_pairs, experts),
            "experts: groups: too small");
    groups = static_cast<int32_t*>(memory.data);
    activation.kind = function_named(maker.of.text("function"));
    require(activation.kind < kScale, "experts: a function with a number");
    activation.slope = maker.of.number("slope"), activation.number = maker.of.number("limit");
    if (activation.number > 0.0f) activation.kind = kClampedGate;
    gathers = shares_first || gate.reads_floats() || up.reads_floats();
  }

  void run(Worker& worker) const override {
    const int64_t pairs = worker.rows * used;
    const Grouping grouping(groups, most_pairs, int64_t(gate.of.size()));
    if (worker.thread == 0) deal(worker, grouping, pairs);
    worker.barrier();
    grouping.share_rows(worker, pairs, [&](int64_t expert, int64_t begin, int64_t end) {
      read_rows(worker, grouping, expert, begin, end);
    });
    worker.barrier();
    const int64_t tiles = (gate.out_features + 15) / 16;
    grouping.share_tiles(worker, 2 * tiles, [&](int64_t expert, int64_t begin, int64_t end) {
      if (begin < tiles)
        multiply(worker, grouping, gate, expert, rows, gates, begin, std::min(end, tiles));
      if (end > tiles)
        multiply(worker, grouping, up, expert, rows, ups, std::max(begin - tiles, int64_t(0)),
                 end - tiles);
    });
    worker.barrier();
    grouping.share_rows(worker, pairs, [&](int64_t expert, int64_t begin, int64_t end) {
      activate(worker, grouping, expert, begin, end);
    });
    worker.barrier();
    grouping.share_tiles(worker, (down.out_features + 15) / 16,
                         [&](int64_t expert, int64_t begin, int64_t end) {
                           multiply(worker, grouping, down, expert, gates, mixed, begin, end);
                         });
    worker.barrier();
    add_up(worker, grouping);
  }

 private:
  void deal(const Worker& worker, const Grouping& grouping, int64_t pairs) const {
    const Buffer& at = worker.buffer(chosen);
    grouping.deal(pairs, used, worker.kernels().together_from, [&](int64_t pair) {
      const float number = at.data[pair / used * at.stride + pair % used];
      return number >= 0.0f && number < float(gate.of.size()) ? int64_t(number) : 0;
    });
  }

  // What gate and up of an expert read, for some of its rows.
  void read_rows(const Worker& worker, const Grouping& grouping, int64_t expert, int64_t begin,
                 int64_t end) const {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(rows), &by = worker.buffer(shares);
    const int64_t first = grouping.first[expert];
    for (int64_t row = first + begin; gathers && row < first + end; ++row) {
      const int64_t token = grouping.token[row];
      const float share = shares_first ? share_of(worker, grouping, by, row) : 1.0f;
      const float* x = from.data + token * from.stride;
      float* y = to.data + row * to.stride;
      for (int64_t k = 0; k < from.width; ++k) y[k] = x[k] * share;
    }
    const int a = gate.of[expert].activations, b = up.of[expert].activations;
    for (const int index : {a, b == a ? -1 : b}) {
      if (index < 0) continue;
      const Activations x = rows_of(worker, index, first, grouping.count[expert]);
      if (shares_first)
        quantize_rows(worker, x, to.data + first * to.stride, to.stride, nullptr, begin, end);
      else
        quantize_rows(worker, x, from.data, from.stride, grouping.token + first, begin, end);
    }
  }

  float share_of(const Worker&, const Grouping& grouping, const Buffer& by, int64_t row) const {
    const int64_t token = grouping.token[row];
    for (int64_t slot = 0; slot < used; ++slot)
      if (grouping.place[token * used + slot] == row) return by.data[token * by.stride + slot];
    return 0.0f;
  }

  void multiply(const Worker& worker, const Grouping& grouping, const Role& role, int64_t expert,
                int from, int to, int64_t begin, int64_t end) const {
    const Buffer &x = worker.buffer(from), &y = worker.buffer(to);
    const int64_t first = grouping.first[expert];
    multiply_rows(worker, role.of[expert], first, grouping.count[expert], x.data + first * x.stride,
                  x.stride, role.bias_of(expert), y.data + first * y.stride, y.stride, begin, end);
  }

  // function(gate) times up, in place of gate.
  void activate(const Worker& worker, const Grouping& grouping, int64_t expert, int64_t begin,
                int64_t end) const {
    const Buffer &a = worker.buffer(gates), &b = worker.buffer(ups);
    const int64_t first = grouping.first[expert], vectors = a.stride / 16;
    ElementwiseJob job = activation;
    job.left = a.data, job.right = b.data, job.out = a.data;
    job.begin = (first + begin) * vectors, job.end = (first + end) * vectors;
    worker.kernels().elementwise(job);
    const int index = down.of[expert].activations;
    if (index < 0) return;
    quantize_rows(worker, rows_of(worker, index, first, grouping.count[expert]),
                  a.data + first * a.stride, a.stride, nullptr, begin, end);
  }

  void add_up(const Worker& worker, const Grouping& grouping) const {
    const Buffer &from = worker.buffer(mixed), &to = worker.buffer(out);
    const Buffer& by = worker.buffer(shares);
    const Share mine = worker.share(worker.rows);
    for (int64_t token = mine.begin; token < mine.end; ++token) {
      float* y = to.data + token * to.stride;
      for (int64_t slot = 0; slot < used; ++slot) {
        const float* x = from.data + grouping.place[token * used + slot] * from.stride;
        const float share = shares_first ? 1.0f : by.data[token * by.stride + slot];
        if (slot == 0)
          for (int64_t k = 0; k < to.width; ++k) y[k] = x[k] * share;
        else
          for (int64_t k = 0; k < to.width; ++k) y[k] += x[k] * share;
      }
    }
  }
};

const Register<Experts> registered("experts");

}  // namespace
}  // namespace crumb
