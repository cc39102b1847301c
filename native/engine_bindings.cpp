// The engine's Python face: checks every size once, keeps the arrays alive, releases the GIL.
// In: NumPy arrays and numbers from run/program.py, lists of tokens and pages from run/engine.py.
// Out: class NativeEngine of crumb._native. Raises TypeError for another type, dtype or order,
// ValueError where sizes disagree; run/ checks meaning.
#include "engine_bindings.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <deque>
#include <map>
#include <stdexcept>

#include "bindings_checks.hpp"
#include "operation.hpp"
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
      {2, kFixed, kSubPairs, 32, true},     {3, kFixed, kSubPairs, 32, true},
      {4, kFixed, kSubQuads, 32, true},
  };
  return std::ranges::count(kRows, Row{bits, zero, sub, group_width, table}) > 0;
}

// Whether every level, of a table of levels + 128, times a sub-scale of -8 to 7 fits a signed byte.
bool has_small_levels(const uint8_t* table, int bits) {
  return std::all_of(table, table + (1 << bits), [](int level) { return level >= 113 && level <= 143; });
}

Element element_of(nb::dlpack::dtype dtype) {
  if (dtype == nb::dtype<float>()) return Element::kFloat32;
  if (dtype == nb::dtype<int32_t>()) return Element::kInt32;
  return dtype == nb::dtype<uint8_t>() ? Element::kUint8 : Element::kOther;
}

// An array as it lies, C-contiguous. Raises TypeError.
ArrayView view_of(nb::handle value, std::vector<nb::object>& arrays) {
  nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> read;
  nb::ndarray<nb::c_contig, nb::device::cpu> written;
  const bool writable = nb::try_cast(value, written, false);
  if (!writable && !nb::try_cast(value, read, false))
    throw nb::type_error("expected a C-contiguous array, a number, a text, integers or None");
  ArrayView view{writable ? written.data() : const_cast<void*>(read.data()), {},
                 element_of(writable ? written.dtype() : read.dtype()), writable};
  const size_t rank = writable ? written.ndim() : read.ndim();
  for (size_t axis = 0; axis < rank; ++axis)
    view.shape.push_back(int64_t(writable ? written.shape(axis) : read.shape(axis)));
  arrays.push_back(nb::borrow(value));
  return view;
}

// A Python argument of an operation as arguments.hpp has it. Raises TypeError.
Value value_of(nb::handle value, std::vector<nb::object>& arrays) {
  if (value.is_none()) return {};
  if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value);
  if (nb::isinstance<nb::float_>(value)) return nb::cast<double>(value);
  if (nb::isinstance<nb::str>(value)) return nb::cast<std::string>(value);
  int64_t whole;
  if (nb::isinstance<nb::int_>(value)) {
    if (!nb::try_cast(value, whole, false)) throw nb::type_error("an integer is too large");
    return whole;
  }
  std::vector<int64_t> integers;
  if (nb::isinstance<nb::list>(value)) {
    if (!nb::try_cast(value, integers, false)) throw nb::type_error("expected integers");
    return integers;
  }
  return view_of(value, arrays);
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
    require(width > 0 && width <= stride && stride % kLaneFloats == 0, "buffer: rows of 16 floats");
    require(stride <= kMostWidth, "buffer: too wide");
    require_rest();
    if (engine_.buffers.empty()) engine_.limits.capacity = int64_t(data.shape(0));
    keep(data);
    engine_.buffers.push_back({data.data(), int64_t(data.shape(0)), width, stride});
    return int(engine_.buffers.size()) - 1;
  }

  // From the next step on a buffer lies elsewhere: a caller's that holds the rows of many steps.
  void move_buffer(int index, Array<float, 2> data) {
    require(index >= 0 && index < int(engine_.buffers.size()), "no such buffer");
    Buffer& buffer = engine_.buffers[index];
    require(int64_t(data.shape(0)) >= buffer.rows && int64_t(data.shape(1)) == buffer.stride,
            "buffer: other rows than before");
    require_rest();
    buffer.data = data.data();
    moved_[index] = nb::cast(data);
  }

  int add_activations(Array<int8_t, 2> codes, Array<float, 2> scale, Array<int32_t, 2> sum,
                      int64_t columns, int64_t block_inputs) {
    require(block_inputs > 0 && block_inputs <= kBlockInputs, "block_inputs out of range");
    require(columns > 0 && columns <= kMostWidth, "columns out of range");
    const int64_t blocks = (columns + block_inputs - 1) / block_inputs, rows = scale.shape(0);
    const Activations made{codes.data(), scale.data(), sum.data(), int64_t(codes.shape(1)), blocks,
                           columns, block_inputs};
    require(int64_t(codes.shape(0)) >= activation_rows(rows), "codes: rows padded to 32");
    require(int64_t(codes.shape(1)) >= activation_stride(columns), "codes: too narrow");
    require(int64_t(scale.shape(1)) == scale_count(made) &&
                int64_t(sum.shape(1)) == blocks && int64_t(sum.shape(0)) == rows, "scale or sum: wrong shape");
    require_rest();
    keep(codes), keep(scale), keep(sum);
    engine_.activations.push_back(made);
    engine_.activation_rows.push_back(rows);
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
      require((sub >= kSubPairs ? columns >= group_width : columns % kSuperInputs == 0) &&
                  has_kernel(bits, zero, sub, group_width, bool(table)),
              "matrix: no kernel for these super-blocks");
    require(!table || (bits <= 4 && zero == kFixed && table->shape(0) == 16), "matrix: bad table");
    require(sub != kSubPairs || bits > 3 || has_small_levels(table->data(), bits),
            "matrix: levels from -15 to 15 only");
    TileMatrix matrix{tiles.data(), table ? table->data() : nullptr, rows, columns,
                      std::min(group_width, columns), 0, bits, zero, sub};
    const int64_t bytes = matrix.tile_bytes = tile_bytes(matrix);
    require(int64_t(tiles.shape(0)) == tile_count(rows) && int64_t(tiles.shape(1)) == bytes,
            "tiles: wrong shape");
    require(matmul_scratch_bytes(columns) <= engine_.scratch_bytes(), "scratch: too small");
    keep(tiles);
    if (table) keep(*table);
    tiles_.push_back(matrix);
    engine_.matrices.push_back({&tiles_.back(), nullptr});
    return int(engine_.matrices.size()) - 1;
  }

  // Some inputs of a matrix of tiles that have float16 weights beside their codes.
  void add_columns(int matrix, Array<const int32_t, 1> places, Array<const uint8_t, 3> tiles) {
    require(matrix >= 0 && matrix < int(engine_.matrices.size()), "no such matrix");
    Matrix& of = engine_.matrices[matrix];
    require(of.tiles && !of.beside, "columns: of a matrix of tiles, once");
    const int64_t count = int64_t(places.shape(0));
    require(count > 0 && int64_t(tiles.shape(0)) == tile_count(of.rows()) &&
                int64_t(tiles.shape(1)) == count && int64_t(tiles.shape(2)) == kColumnBytes,
            "columns: wrong shape");
    for (int64_t k = 0; k < count; ++k)
      require(places.data()[k] > (k ? places.data()[k - 1] : -1) &&
                  places.data()[k] < of.columns(), "columns: places");
    require_rest();
    keep(places), keep(tiles);
    columns_.push_back({places.data(), tiles.data(), count});
    of.beside = &columns_.back();
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
    engine_.matrices.push_back({nullptr, &floats_.back()});
    return int(engine_.matrices.size()) - 1;
  }

  // Appends an operation; native/operations has the kinds and what each takes.
  void add(const std::string& kind, const nb::kwargs& arguments) {
    require_rest();
    std::map<std::string, Value> values;
    std::vector<nb::object> arrays;
    for (const auto& [name, value] : arguments)
      values[nb::cast<std::string>(name)] = value_of(value, arrays);
    try {
      add_operation(engine_, kind, {kind, std::move(values)});
    } catch (const WrongType& error) {
      throw nb::type_error(error.what());
    }
    kept_.insert(kept_.end(), arrays.begin(), arrays.end());
  }

  // Operations added from now on run in steps of their own: a section.
  void begin_section() {
    require_rest();
    engine_.sections.push_back({operation_count(), engine_.limits});
    const int64_t capacity = engine_.limits.capacity;
    engine_.limits = {};
    engine_.limits.capacity = capacity;
  }

  // Operations up to the end of a section that another follows.
  int section_end(int section) const {
    require(section >= 0 && section < int(engine_.sections.size()), "no such section");
    return int(engine_.sections[section].end);
  }

  int operation_count() const { return int(engine_.operations.size()); }
  void set_timed(bool timed) { engine_.timed = timed; }

  // Kinds that never ran while timed are there with 0.
  std::map<std::string, double> seconds() const {
    std::map<std::string, double> all;
    for (const std::string& kind : operation_kinds()) all[kind] = 0.0;
    for (const auto& [kind, seconds] : engine_.seconds()) all[kind] = seconds;
    return all;
  }

  // What a step takes of one sequence: its next tokens, how many came before them, the pages of
  // all of these, and how many of the last of its rows Select keeps.
  using Part = std::tuple<std::vector<int32_t>, int64_t, std::vector<int32_t>, int64_t>;

  // And of what it has read before it writes: how many tokens, and the pages of its memory.
  using Memory = std::tuple<int64_t, std::vector<int32_t>>;

  // And through what keeps a state: so many rows, the place of the state they begin with, and that
  // of the one behind them; -1: from nothing, and not kept. They are all rows of the part.
  using Run = std::tuple<int64_t, int64_t, int64_t>;

  // Operations of a section up to `operations`, counted over all.
  void step(const std::vector<Part>& parts, int operations, int section,
            const std::vector<Memory>& memories, const std::vector<std::vector<Run>>& states) {
    const auto& sections = engine_.sections;
    require(section >= 0 && section <= int(sections.size()), "step: section");
    const bool is_last = section == int(sections.size());
    const int64_t first = section ? sections[section - 1].end : 0;
    require(operations >= first && operations <= (is_last ? operation_count() : sections[section].end),
            "step: operations");
    const Limits& limits = is_last ? engine_.limits : sections[section].limits;
    require(memories.size() == (limits.has_memory ? parts.size() : 0), "step: memories");
    require(states.size() == (limits.keeps_state ? parts.size() : 0), "step: states");
    std::vector<int32_t> tokens, positions, selected;
    std::vector<Segment> segments, remembered;
    std::vector<StateRun> runs;
    for (const auto& [next, past, pages, kept] : parts) {
      const int64_t first_row = int64_t(tokens.size()), rows = int64_t(next.size());
      require(rows > 0 && first_row + rows <= limits.capacity, "step: rows");
      require(kept >= 0 && kept <= rows && int64_t(selected.size()) + kept <= limits.selected_rows,
              "step: rows selected");
      check_place(limits, past, rows, pages);
      for (int64_t k = 0; k < rows; ++k) {
        require(next[k] >= 0 && next[k] < limits.vocabulary, "step: token out of range");
        tokens.push_back(next[k]);
        positions.push_back(int32_t(past + k));
        if (k >= rows - kept) selected.push_back(int32_t(first_row + k));
      }
      if (limits.keeps_state) add_runs(limits, first_row, rows, states[segments.size()], runs);
      segments.push_back({first_row, rows, past, pages.data()});
      if (!limits.has_memory) continue;
      const auto& [read, memory] = memories[segments.size() - 1];
      check_memory(limits, read, rows, memory);
      remembered.push_back({first_row, rows, read - rows, memory.data()});
    }
    require(!tokens.empty(), "step: rows");
    struct Running {  // counted while Python's lock is held
      int& steps;
      explicit Running(int& count) : steps(++count) {}
      ~Running() { --steps; }
    } running(steps_);
    const Step step{tokens.data(), positions.data(), int64_t(tokens.size()), segments.data(),
                    int64_t(segments.size()), selected.data(), int64_t(selected.size()),
                    operations, first, runs.data(), int64_t(runs.size()), remembered.data()};
    nb::gil_scoped_release release;
    engine_.run(step);
  }

 private:
  void check_place(const Limits& limits, int64_t past, int64_t rows,
                   const std::vector<int32_t>& pages) const {
    require(past >= 0 && past <= limits.positions - rows, "step: position");
    check_pages(limits, past + rows, pages, limits.pages);
  }

  void add_runs(const Limits& limits, int64_t row, int64_t rows, const std::vector<Run>& states,
                std::vector<StateRun>& runs) const {
    const int64_t end = row + rows;
    for (const auto& [count, from, to] : states) {
      require(count > 0 && count <= end - row, "step: rows of a state");
      require(from >= -1 && from < limits.states && to >= -1 && to < limits.states,
              "step: state out of range");
      runs.push_back({row, count, from, to});
      row += count;
    }
    require(row == end, "step: rows of a state");
  }

  void check_memory(const Limits& limits, int64_t read, int64_t rows,
                    const std::vector<int32_t>& pages) const {
    require(read > 0 && read <= INT32_MAX, "step: memory");
    require(!limits.fills_memory || read == rows, "step: memory");
    check_pages(limits, read, pages, limits.memory_pages);
  }

  void check_pages(const Limits& limits, int64_t tokens, const std::vector<int32_t>& pages,
                   int64_t count) const {
    const int64_t needed = count == INT32_MAX ? 0 : (tokens + kPageTokens - 1) / kPageTokens;
    require(needed <= int64_t(pages.size()), "step: pages missing");
    for (int64_t k = 0; k < needed; ++k)
      require(pages[k] >= 0 && pages[k] < count, "step: page out of range");
    require(limits.head_dim == 0 || attention_scratch_floats(tokens, limits.head_dim) * 4 <=
                                        engine_.scratch_bytes(), "step: scratch too small");
  }

  template <class A>
  void keep(const A& array) { kept_.push_back(nb::cast(array)); }

  // A step of another thread walks what is there.
  void require_rest() const { require(steps_ == 0, "engine: added to while a step runs"); }

  Engine engine_;
  std::deque<TileMatrix> tiles_;  // addresses stay
  std::deque<FloatMatrix> floats_;
  std::deque<FloatColumns> columns_;
  std::vector<nb::object> kept_;
  std::map<int, nb::object> moved_;  // where buffers lie now
  int steps_ = 0;  // that run, or wait for another
};

}  // namespace

void bind_engine(nb::module_& m) {
  using E = NativeEngine;
  nb::class_<E>(m, "NativeEngine")
      .def(nb::init<const std::string&, int, Array<uint8_t, 2>>(), nb::arg("isa"),
           nb::arg("threads"), array("scratch"))
      .def("add_buffer", &E::add_buffer, array("data"), nb::arg("width"))
      .def("move_buffer", &E::move_buffer, nb::arg("index"), array("data"))
      .def("add_activations", &E::add_activations, array("codes"), array("scale"), array("sum"),
           nb::arg("columns"), nb::arg("block_inputs"))
      .def("add_tiles", &E::add_tiles, array("tiles"), nb::arg("rows"), nb::arg("columns"),
           nb::arg("group_width"), nb::arg("bits"), nb::arg("zero"), nb::arg("sub"),
           array("table").none())
      .def("add_columns", &E::add_columns, nb::arg("matrix"), array("places"), array("tiles"))
      .def("add_floats", &E::add_floats, array("weights"), nb::arg("columns"), nb::arg("kind"))
      .def("add", &E::add, nb::arg("kind"), nb::arg("arguments"))
      .def("begin_section", &E::begin_section)
      .def("section_end", &E::section_end, nb::arg("section"))
      .def("operation_count", &E::operation_count)
      .def("set_timed", &E::set_timed, nb::arg("timed"))
      .def("seconds", &E::seconds)
      .def("step", &E::step, nb::arg("parts"), nb::arg("operations"), nb::arg("section") = 0,
           nb::arg("memories") = std::vector<E::Memory>(),
           nb::arg("states") = std::vector<std::vector<E::Run>>());
}

}  // namespace crumb
