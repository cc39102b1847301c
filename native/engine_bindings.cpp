// The engine's Python face: checks every size once, keeps the arrays alive, releases the GIL.
// In: NumPy arrays and numbers from run/program.py, lists of tokens and pages from run/engine.py.
// Out: class NativeEngine of crumb._native. Raises TypeError for another type, dtype or order,
// ValueError where sizes disagree; run/ checks meaning.
#include "engine_bindings.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <deque>
#include <stdexcept>

#include "bindings_checks.hpp"
#include "engine.hpp"
#include "tile.hpp"

namespace nb = nanobind;

namespace crumb {
namespace {

// Super-blocks that matmul.inl multiplies.
bool has_kernel(int bits, int zero, int sub, int64_t group_width, bool table) {
  struct Row {
    int bits, zero, sub;
    int64_t group_width;
    bool table;
    bool operator==(const Row&) const = default;
  };
  constexpr Row kRows[] = {
      {2, kMinimum, kSubDigits, 16, false}, {3, kFixed, kSubBytes, 16, false},
      {4, kMinimum, kSubBytes, 32, false},  {5, kMinimum, kSubBytes, 32, false},
      {6, kFixed, kSubBytes, 16, false},    {4, kFixed, kSubBytes, 32, true},
  };
  return std::ranges::count(kRows, Row{bits, zero, sub, group_width, table}) > 0;
}

// Threads of an engine, for each of which the scratch has a row.
int scratch_rows(const Array<uint8_t, 2>& scratch, int threads) {
  require(threads >= 1 && threads <= kMostThreads, "threads must be 1 to 4096");
  require(int64_t(scratch.shape(0)) == threads, "scratch: a row for each thread");
  return threads;
}

class NativeEngine {
 public:
  NativeEngine(const std::string& isa, int threads, Array<uint8_t, 2> scratch)
      : engine_(kernels_named(isa), scratch_rows(scratch, threads), scratch.data(),
                int64_t(scratch.shape(1))) {
    require(reinterpret_cast<uintptr_t>(scratch.data()) % 64 == 0 && scratch.shape(1) % 64 == 0,
            "scratch must be aligned to 64 bytes");
    keep(scratch);
  }

  int add_buffer(Array<float, 2> data, int64_t width) {
    const int64_t stride = int64_t(data.shape(1));
    require(width > 0 && width <= stride && stride % 16 == 0, "buffer: rows of 16 floats");
    require(stride <= kMostWidth, "buffer: too wide");
    if (engine_.buffers.empty()) capacity_ = rows_ = int64_t(data.shape(0));
    require_rest();
    keep(data);
    engine_.buffers.push_back({data.data(), int64_t(data.shape(0)), width, stride});
    return int(engine_.buffers.size()) - 1;
  }

  int add_activations(Array<int8_t, 2> codes, Array<float, 2> scale, Array<int32_t, 2> sum,
                      int64_t columns, int64_t block_inputs) {
    require(block_inputs > 0 && block_inputs <= kBlockInputs, "block_inputs out of range");
    require(columns > 0 && columns <= kMostWidth, "columns out of range");
    const int64_t blocks = (columns + block_inputs - 1) / block_inputs, rows = scale.shape(0);
    const Activations made{codes.data(), scale.data(), sum.data(), int64_t(codes.shape(1)), blocks,
                           columns, block_inputs};
    require(int64_t(codes.shape(0)) >= padded_to(rows, 32), "codes: rows padded to 32");
    require(int64_t(codes.shape(1)) >= padded_to(columns, 32) + kActivationPad, "codes: too narrow");
    require(int64_t(scale.shape(1)) == scale_count(made) &&
                int64_t(sum.shape(1)) == blocks && int64_t(sum.shape(0)) == rows, "scale or sum: wrong shape");
    require_rest();
    keep(codes), keep(scale), keep(sum);
    engine_.activations.push_back(made);
    activation_rows_.push_back(rows);
    return int(engine_.activations.size()) - 1;
  }

  int add_tiles(Array<const uint8_t, 2> tiles, int64_t rows, int64_t columns, int64_t group_width,
                int bits, int zero, int sub, std::optional<Array<const uint8_t, 1>> table) {
    require(rows > 0 && columns > 0 && group_width > 0, "matrix: empty");
    require(rows <= INT32_MAX && columns <= kMostWidth, "matrix: too large");
    require((bits >= 2 && bits <= 6) || bits == 8, "matrix: no kernel for these bits");
    require(zero >= kFixed && zero <= kMinimum, "matrix: unknown zero kind");
    if (sub == kNoSub)
      require(group_width >= columns || group_width == 32 || group_width == 64 ||
                  group_width == 128, "matrix: no kernel for this group width");
    else
      require(columns % kSuperInputs == 0 && has_kernel(bits, zero, sub, group_width, bool(table)),
              "matrix: no kernel for these super-blocks");
    require(!table || (bits == 4 && zero == kFixed && table->shape(0) == 16), "matrix: bad table");
    TileMatrix matrix{tiles.data(), table ? table->data() : nullptr, rows, columns,
                      std::min(group_width, columns), 0, bits, zero, sub};
    const int64_t bytes = matrix.tile_bytes = tile_bytes(matrix);
    require(int64_t(tiles.shape(0)) == tile_count(rows) && int64_t(tiles.shape(1)) == bytes,
            "tiles: wrong shape");
    require(matmul_scratch_bytes(columns) <= engine_.scratch_bytes(), "scratch: too small");
    keep(tiles);
    if (table) keep(*table);
    tiles_.push_back(matrix);
    matrices_.push_back({&tiles_.back(), nullptr});
    return int(matrices_.size()) - 1;
  }

  int add_floats(Array<const uint8_t, 2> weights, int64_t columns, int kind) {
    require(kind >= kFloat32 && kind <= kBfloat16, "matrix: unknown float kind");
    require(weights.shape(0) > 0 && columns > 0, "matrix: empty");
    require(weights.shape(0) <= INT32_MAX && columns <= kMostWidth, "matrix: too large");
    require(int64_t(weights.shape(1)) == columns * (kind == kFloat32 ? 4 : 2),
            "weights: wrong shape");
    require(matmul_scratch_bytes(columns) <= engine_.scratch_bytes(), "scratch: too small");
    keep(weights);
    floats_.push_back({weights.data(), int64_t(weights.shape(0)), columns, kind});
    matrices_.push_back({nullptr, &floats_.back()});
    return int(matrices_.size()) - 1;
  }

  void embed(bool of_positions, int out, int matrix) {
    const Matrix& m = at(matrix);
    require(to(out).width == m.columns(), "embed: widths differ");
    int64_t& limit = of_positions ? positions_ : vocabulary_;
    limit = std::min(limit, m.rows());
    append(Embed{of_positions, out, m});
  }

  void norm(int in, int out, Array<const float, 1> weight,
            std::optional<Array<const float, 1>> bias, float epsilon, bool centered) {
    const int64_t width = from(in).width;
    require(to(out).width == width && int64_t(weight.shape(0)) == width, "norm: widths differ");
    require(!bias || int64_t(bias->shape(0)) == width, "norm: bias has the wrong width");
    keep(weight);
    if (bias) keep(*bias);
    append(
        Norm{in, out, weight.data(), bias ? bias->data() : nullptr, epsilon, centered});
  }

  void quantize(int in, int activations) {
    require(activations >= 0 && activations < int(engine_.activations.size()), "no activations");
    require(from(in).width == engine_.activations[activations].columns, "quantize: widths differ");
    require(activation_rows_[activations] >= rows_, "activations: too few rows");
    append(Quantize{in, activations});
  }

  // joined: with the group of the operation before. Nothing waits between the layers of a group,
  // so none reads what another writes.
  void linear(int in, int activations, int out, int matrix,
              std::optional<Array<const float, 1>> bias, bool joined) {
    const Matrix& m = at(matrix);
    require(from(in).width == m.columns() && to(out).width == m.rows(), "linear: widths differ");
    require(!bias || int64_t(bias->shape(0)) == m.rows(), "linear: bias has the wrong width");
    if (activations >= 0) {
      require(m.tiles && activations < int(engine_.activations.size()), "no activations");
      require(activation_rows_[activations] >= rows_, "activations: too few rows");
      const Activations& x = engine_.activations[activations];
      require(x.columns == m.columns() &&
                  x.block_inputs == std::min(m.tiles->group_width, kBlockInputs),
              "linear: activations of another width");
    }
    if (bias) keep(*bias);
    const Linear linear{in, activations, out, m, bias ? bias->data() : nullptr};
    require(apart(in, out), "linear: reads what it writes");
    if (!joined) return append(LinearGroup{{linear}});
    auto* group = engine_.operations.empty()
                      ? nullptr
                      : std::get_if<LinearGroup>(&engine_.operations.back());
    require(group, "linear: nothing to join");
    for (const Linear& other : group->linears)
      require(apart(in, other.out) && apart(out, other.in) && apart(out, other.out),
              "linear: joined to one that writes what it reads or writes, or reads what it writes");
    require_rest();
    group->linears.push_back(linear);
  }

  void split(int in, std::vector<int> outs, int64_t outer, int64_t inner) {
    const int64_t width = from(in).width;
    require(outer > 0 && inner > 0 && !outs.empty(), "split: empty");
    require(outer <= width && inner <= width && int64_t(outs.size()) <= width &&
                width == outer * inner * int64_t(outs.size()), "split: widths differ");
    for (int out : outs) require(to(out).width == outer * inner, "split: widths differ");
    append(Split{in, outs, outer, inner});
  }

  void rotary(int in, int out, int heads, int dimensions, bool interleaved,
              Array<const float, 2> turns) {
    const int64_t width = from(in).width;
    require(heads > 0 && width % heads == 0 && to(out).width == width, "rotary: widths differ");
    require(dimensions > 0 && dimensions % 2 == 0 && dimensions <= width / heads &&
                int64_t(turns.shape(1)) == dimensions, "rotary: wrong dimensions");
    positions_ = std::min(positions_, int64_t(turns.shape(0)));
    keep(turns);
    append(Rotary{in, out, heads, int(width / heads), dimensions,
                                        interleaved, turns.data()});
  }

  void attention(int query, int key, int value, int out, int heads, int key_value_heads,
                 float scale, float soft_cap, bool causal, int64_t window,
                 Array<uint8_t, 2> pages, int kind) {
    const int64_t width = from(query).width, kept = from(key).width;
    require(heads > 0 && key_value_heads > 0 && heads % key_value_heads == 0 && width % heads == 0,
            "attention: heads do not divide");
    const int64_t dim = width / heads;
    require(selected_rows_ == 0, "attention: behind select");
    require(window >= 0, "attention: negative window");
    require(kept == dim * key_value_heads && from(value).width == kept && to(out).width == width,
            "attention: widths differ");
    require(is_cache_kind(kind), "attention: cache kind");
    const int64_t head_bytes = cache_head_bytes(dim, kind);
    require(int64_t(pages.shape(1)) == head_bytes * key_value_heads, "pages: wrong size");
    page_count_ = std::min(page_count_, int64_t(pages.shape(0)));
    keep(pages);
    head_dim_ = std::max(head_dim_, dim);
    append(
        Attention{query, key, value, out, heads, key_value_heads, int(dim), scale, soft_cap, causal,
                  window, {pages.data(), head_bytes * key_value_heads, head_bytes, kind}});
  }

  void elementwise(int left, int right, int out, int kind) {
    const Buffer &a = from(left), &to_buffer = to(out);
    require(a.width == to_buffer.width && a.stride == to_buffer.stride, "elementwise: widths");
    const bool is_function = kind >= kSilu && kind <= kRelu;
    require(is_function || (right >= 0 && (kind == kMultiply || kind == kAdd)),
            "elementwise: unknown function");
    if (right >= 0)
      require(from(right).width == a.width && from(right).stride == a.stride, "elementwise: widths");
    append(Elementwise{left, right, out, kind});
  }

  void select(int in, int out) {
    require(selected_rows_ == 0, "select: a second one");
    require(from(in).width == buffer(out).width && from(in).stride == buffer(out).stride,
            "select: widths differ");
    selected_rows_ = rows_ = buffer(out).rows;
    append(Select{in, out});
  }

  void gather(int in, int out, Array<const int32_t, 1> order) {
    const int64_t width = from(in).width;
    require(in != out && to(out).width == width && int64_t(order.shape(0)) == width,
            "gather: widths differ");
    for (int64_t k = 0; k < width; ++k)
      require(order.data()[k] >= 0 && order.data()[k] < width, "gather: column out of range");
    keep(order);
    append(Gather{in, out, order.data()});
  }

  int operation_count() const { return int(engine_.operations.size()); }
  void set_timed(bool timed) { engine_.timed = timed; }

  std::vector<std::tuple<std::string, double>> seconds() const {
    static const char* names[] = {"embed", "norm", "quantize", "linear", "split",
                                  "rotary", "attention", "elementwise", "select", "gather"};
    std::vector<std::tuple<std::string, double>> all;
    const std::vector<double> seconds = engine_.seconds();
    for (size_t k = 0; k < seconds.size(); ++k) all.emplace_back(names[k], seconds[k]);
    return all;
  }

  // What a step takes of one sequence: its next tokens, how many came before them, the pages of
  // all of these, and how many of the last of its rows Select keeps.
  using Part = std::tuple<std::vector<int32_t>, int64_t, std::vector<int32_t>, int64_t>;

  void step(const std::vector<Part>& parts, int operations) {
    require(operations >= 0 && operations <= operation_count(), "step: operations");
    std::vector<int32_t> tokens, positions, selected;
    std::vector<Segment> segments;
    for (const auto& [next, past, pages, kept] : parts) {
      const int64_t first_row = int64_t(tokens.size()), rows = int64_t(next.size());
      require(rows > 0 && first_row + rows <= capacity_, "step: rows");
      require(kept >= 0 && kept <= rows && int64_t(selected.size()) + kept <= selected_rows_,
              "step: rows selected");
      check_place(past, rows, pages);
      for (int64_t k = 0; k < rows; ++k) {
        require(next[k] >= 0 && next[k] < vocabulary_, "step: token out of range");
        tokens.push_back(next[k]);
        positions.push_back(int32_t(past + k));
        if (k >= rows - kept) selected.push_back(int32_t(first_row + k));
      }
      segments.push_back({first_row, rows, past, pages.data()});
    }
    require(!tokens.empty(), "step: rows");
    struct Running {  // counted while Python's lock is held
      int& steps;
      explicit Running(int& count) : steps(++count) {}
      ~Running() { --steps; }
    } running(steps_);
    const Step step{tokens.data(), positions.data(), int64_t(tokens.size()), segments.data(),
                    int64_t(segments.size()), selected.data(), int64_t(selected.size()),
                    operations};
    nb::gil_scoped_release release;
    engine_.run(step);
  }

 private:
  void check_place(int64_t past, int64_t rows, const std::vector<int32_t>& pages) const {
    require(past >= 0 && past <= positions_ - rows, "step: position");
    const int64_t needed = (past + rows + kPageTokens - 1) / kPageTokens;
    require(needed <= int64_t(pages.size()), "step: pages missing");
    for (int64_t k = 0; k < needed; ++k)
      require(pages[k] >= 0 && pages[k] < page_count_, "step: page out of range");
    require(head_dim_ == 0 || attention_scratch_floats(past + rows, head_dim_) * 4 <=
                                  engine_.scratch_bytes(), "step: scratch too small");
  }

  template <class A>
  void keep(const A& array) { kept_.push_back(nb::cast(array)); }

  // A step of another thread walks what is there.
  void require_rest() const { require(steps_ == 0, "engine: added to while a step runs"); }

  void append(Operation operation) {
    require_rest();
    engine_.operations.push_back(std::move(operation));
  }

  bool apart(int a, int b) const {
    const Buffer &x = buffer(a), &y = buffer(b);
    return x.data + x.rows * x.stride <= y.data || y.data + y.rows * y.stride <= x.data;
  }

  const Buffer& buffer(int index) const {
    require(index >= 0 && index < int(engine_.buffers.size()), "no such buffer");
    return engine_.buffers[index];
  }
  // A buffer that an operation reads or writes holds all rows that reach it.
  const Buffer& from(int index) const {
    require(buffer(index).rows >= rows_now(), "buffer: too few rows");
    return buffer(index);
  }
  const Buffer& to(int index) const { return from(index); }
  int64_t rows_now() const { return selected_rows_ ? selected_rows_ : capacity_; }
  const Matrix& at(int index) const {
    require(index >= 0 && index < int(matrices_.size()), "no such matrix");
    return matrices_[index];
  }

  Engine engine_;
  std::deque<TileMatrix> tiles_;  // addresses stay
  std::deque<FloatMatrix> floats_;
  std::vector<Matrix> matrices_;
  std::vector<int64_t> activation_rows_;
  std::vector<nb::object> kept_;
  int steps_ = 0;  // that run, or wait for another
  int64_t capacity_ = 0, rows_ = 0, selected_rows_ = 0, head_dim_ = 0;
  int64_t vocabulary_ = INT32_MAX, positions_ = INT32_MAX, page_count_ = INT32_MAX;
};

}  // namespace

void bind_engine(nb::module_& m) {
  using E = NativeEngine;
  nb::class_<E>(m, "NativeEngine")
      .def(nb::init<const std::string&, int, Array<uint8_t, 2>>(), nb::arg("isa"),
           nb::arg("threads"), array("scratch"))
      .def("add_buffer", &E::add_buffer, array("data"), nb::arg("width"))
      .def("add_activations", &E::add_activations, array("codes"), array("scale"), array("sum"),
           nb::arg("columns"), nb::arg("block_inputs"))
      .def("add_tiles", &E::add_tiles, array("tiles"), nb::arg("rows"), nb::arg("columns"),
           nb::arg("group_width"), nb::arg("bits"), nb::arg("zero"), nb::arg("sub"),
           array("table").none())
      .def("add_floats", &E::add_floats, array("weights"), nb::arg("columns"), nb::arg("kind"))
      .def("embed", &E::embed, nb::arg("of_positions"), nb::arg("out"), nb::arg("matrix"))
      .def("norm", &E::norm, nb::arg("input"), nb::arg("out"), array("weight"),
           array("bias").none(), nb::arg("epsilon"), nb::arg("centered"))
      .def("quantize", &E::quantize, nb::arg("input"), nb::arg("activations"))
      .def("linear", &E::linear, nb::arg("input"), nb::arg("activations"), nb::arg("out"),
           nb::arg("matrix"), array("bias").none(), nb::arg("joined"))
      .def("split", &E::split, nb::arg("input"), nb::arg("outs"), nb::arg("outer"),
           nb::arg("inner"))
      .def("rotary", &E::rotary, nb::arg("input"), nb::arg("out"), nb::arg("heads"),
           nb::arg("dimensions"), nb::arg("interleaved"), array("turns"))
      .def("attention", &E::attention, nb::arg("query"), nb::arg("key"), nb::arg("value"),
           nb::arg("out"), nb::arg("heads"), nb::arg("key_value_heads"), nb::arg("scale"),
           nb::arg("soft_cap"), nb::arg("causal"), nb::arg("window"), array("pages"),
           nb::arg("kind"))
      .def("elementwise", &E::elementwise, nb::arg("left"), nb::arg("right"), nb::arg("out"),
           nb::arg("kind"))
      .def("select", &E::select, nb::arg("input"), nb::arg("out"))
      .def("gather", &E::gather, nb::arg("input"), nb::arg("out"), array("order"))
      .def("operation_count", &E::operation_count)
      .def("set_timed", &E::set_timed, nb::arg("timed"))
      .def("seconds", &E::seconds)
      .def("step", &E::step, nb::arg("parts"), nb::arg("operations"));
}

}  // namespace crumb
