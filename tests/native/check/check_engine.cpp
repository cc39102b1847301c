// A step of the engine with every kind of operation: the same bits on any number of threads.
// In: a small made-up model and two sequences. Out: a line where 2, 3 or 5 threads differ from 1.
// Run under a thread sanitizer it also shows where two threads touch one number unordered.
#include "grouping.hpp"
#include "matrix.hpp"
#include "operation.hpp"

namespace crumb::check {
namespace {

constexpr int kRows = 21, kSelected = 5, kVocabulary = 37, kPositions = 40;
constexpr int kHeads = 4, kKept = 2, kHeadDim = 12, kDimensions = 8;
constexpr int kWidth = kHeads * kHeadDim, kKeptWidth = kKept * kHeadDim, kInner = 100;
constexpr int kExperts = 6, kUsed = 2;

std::vector<float> draw(int64_t count, Random& random) {
  std::vector<float> all(count);
  for (float& each : all) each = random.within(-1, 1);
  return all;
}

std::vector<int32_t> reversed(int count) {
  std::vector<int32_t> all(count);
  for (int k = 0; k < count; ++k) all[k] = count - 1 - k;
  return all;
}

// What a model's operations point to.
struct Model {
  Random random{7};
  std::vector<float> embedding = draw(kVocabulary * kWidth, random);
  std::vector<float> norm = draw(kWidth, random), bias = draw(kWidth, random);
  std::vector<float> turns = draw(kPositions * kDimensions, random);
  std::vector<int32_t> order = reversed(kWidth);
  FloatMatrix words{reinterpret_cast<const uint8_t*>(embedding.data()), kVocabulary, kWidth,
                    kFloat32};
  FloatMatrix router{words.weights, kExperts, kWidth, kFloat32};
  Matrix query = made({4, kVariable, false}, kWidth, kWidth);
  Matrix key = made({3, kMinimum, false}, kKeptWidth, kWidth);
  Matrix value = made({8, kFixed, false}, kKeptWidth, kWidth);
  Matrix out = made({5, kFixed, false}, kWidth, kWidth);
  Matrix up = made({2, kVariable, false}, kInner, kWidth);
  Matrix gate = made({4, kFixed, true}, kInner, kWidth);
  Matrix down = made({6, kVariable, false}, kWidth, kInner);
  TileMatrix tiles[7] = {query.tile_matrix(), key.tile_matrix(), value.tile_matrix(),
                         out.tile_matrix(), up.tile_matrix(), gate.tile_matrix(),
                         down.tile_matrix()};

  Matrix made(Format format, int rows, int columns) {
    return random_matrix(format, rows, columns, 32, false, random);
  }
};

// The memory of one engine, and its operations.
struct Machine {
  const Model& model;
  const int64_t scratch_bytes = padded_to(matmul_scratch_bytes(kInner), 64);
  Memory<uint8_t> scratch, pages;
  std::vector<Memory<float>> floats;
  std::vector<Memory<int8_t>> codes;
  std::vector<Memory<int32_t>> sums;
  Memory<int32_t> dealing{grouping_integers(kRows * kUsed, kExperts)};
  Engine engine;

  Machine(const Model& of, const KernelTable& set, int threads)
      : model(of), scratch(threads * scratch_bytes),
        pages(8 * kKept * cache_head_bytes(kHeadDim, kFloat16)),
        engine(set, threads, scratch.data(), scratch_bytes) {
    add_operations();
  }

  int buffer(int64_t rows, int64_t width) {
    const int64_t stride = buffer_stride(width);
    floats.emplace_back(rows * stride);
    engine.buffers.push_back({floats.back().data(), rows, width, stride});
    return int(engine.buffers.size()) - 1;
  }
  int quantized(int from, int64_t columns) {
    const int index = activations(kRows, columns);
    add("quantize", {{"input", whole(from)}, {"activations", whole(index)}});
    return index;
  }
  int activations(int64_t rows, int64_t columns) {
    const int64_t stride = activation_stride(columns), blocks = (columns + 31) / 32;
    codes.emplace_back(activation_rows(rows) * stride);
    floats.emplace_back(rows * ((columns + kBlockInputs - 1) / kBlockInputs));
    sums.emplace_back(rows * blocks);
    engine.activations.push_back({codes.back().data(), floats.back().data(), sums.back().data(),
                                  stride, blocks, columns, 32});
    engine.activation_rows.push_back(rows);
    return int(engine.activations.size()) - 1;
  }
  static Value whole(int64_t number) { return number; }
  static Value real(double number) { return number; }
  template <class T>
  static Value array(const std::vector<T>& data, std::vector<int64_t> shape, Element element) {
    return ArrayView{const_cast<T*>(data.data()), std::move(shape), element, false};
  }
  void add(const std::string& kind, std::map<std::string, Value> values) {
    add_operation(engine, kind, {kind, std::move(values)});
  }
  int matrix(crumb::Matrix of) {
    engine.matrices.push_back(of);
    return int(engine.matrices.size()) - 1;
  }
  void linear(int in, int activations, int out, crumb::Matrix of, bool joined = false) {
    add("linear", {{"input", whole(in)}, {"activations", whole(activations)}, {"out", whole(out)},
                   {"matrix", whole(matrix(of))}, {"bias", {}}, {"joined", joined}});
  }
  void linear(int in, int activations, int out, int tile, bool joined = false) {
    linear(in, activations, out, {&model.tiles[tile], nullptr}, joined);
  }
  void rotary(int buffer, int heads) {
    add("rotary", {{"input", whole(buffer)}, {"out", whole(buffer)}, {"heads", whole(heads)},
                   {"dimensions", whole(kDimensions)}, {"interleaved", false},
                   {"turns", array(model.turns, {kPositions, kDimensions}, Element::kFloat32)}});
  }
  void attention(int query, int key, int value, int out) {
    const int64_t page_bytes = kKept * cache_head_bytes(kHeadDim, kFloat16);
    add("attention", {{"query", whole(query)}, {"key", whole(key)}, {"value", whole(value)},
                      {"out", whole(out)}, {"heads", whole(kHeads)},
                      {"key_value_heads", whole(kKept)}, {"scale", real(0.3)},
                      {"memory", false}, {"soft_cap", real(0)}, {"causal", true},
                      {"window", whole(0)}, {"farthest", whole(0)}, {"distances", {}},
                      {"sinks", {}},
                      {"slopes", {}}, {"slope_factor", real(1)}, {"rounded", false},
                      {"rate", real(0)}, {"span", real(1)}, {"first", whole(0)},
                      {"chunk", whole(0)},
                      {"pages", ArrayView{pages.data(), {8, page_bytes}, Element::kUint8, true}},
                      {"cache", whole(kFloat16)}});
  }

  // Routes what is in `in` to experts that are all of the same matrices.
  void experts(int in, int out) {
    const int64_t pairs = kRows * kUsed, rows = grouped_rows(pairs, kExperts);
    const int scores = buffer(kRows, kExperts), shares = buffer(kRows, kUsed);
    const int chosen = buffer(kRows, kUsed);
    linear(in, -1, scores, crumb::Matrix{nullptr, &model.router});
    add("router", {{"input", whole(scores)}, {"shares", whole(shares)}, {"chosen", whole(chosen)},
                  {"scoring", std::string("softmax")}, {"finish", std::string("sum")}, {"bias", {}},
                  {"groups", whole(2)}, {"top_groups", whole(1)}, {"group_best", whole(2)},
                  {"floor", real(0)}, {"factor", real(1)}});
    const auto all = [&](int tile) {
      return std::vector<int64_t>(kExperts, matrix({&model.tiles[tile], nullptr}));
    };
    add("experts",
        {{"input", whole(in)}, {"shares", whole(shares)}, {"chosen", whole(chosen)},
         {"out", whole(out)}, {"gate", all(5)}, {"up", all(4)}, {"down", all(6)},
         {"gate_bias", {}}, {"up_bias", {}}, {"down_bias", {}}, {"function", std::string("silu")},
         {"slope", real(1)}, {"limit", real(0)}, {"shares_first", false},
         {"rows", whole(buffer(rows, kWidth))}, {"gates", whole(buffer(rows, kInner))},
         {"ups", whole(buffer(rows, kInner))}, {"mixed", whole(buffer(rows, kWidth))},
         {"activations", std::vector<int64_t>{activations(rows, kWidth), activations(rows, kInner)}},
         {"groups", ArrayView{dealing.data(), {grouping_integers(pairs, kExperts)},
                              Element::kInt32, true}}});
  }

  void add_operations() {
    engine.limits.capacity = kRows;
    const int x = buffer(kRows, kWidth), y = buffer(kRows, kWidth), q = buffer(kRows, kWidth);
    const int k = buffer(kRows, kKeptWidth), v = buffer(kRows, kKeptWidth);
    const int turned = buffer(kRows, kWidth), up = buffer(kRows, kInner);
    const int gate = buffer(kRows, kInner), both = buffer(kRows, 2 * kKeptWidth);
    const int last = buffer(kSelected, kWidth), logits = buffer(kSelected, kVocabulary);
    const int words = matrix({nullptr, &model.words});
    add("embed", {{"of_positions", false}, {"out", whole(x)}, {"matrix", whole(words)},
                 {"first_row", whole(0)}});
    const Value norm = array(model.norm, {kWidth}, Element::kFloat32);
    add("norm", {{"input", whole(x)}, {"out", whole(y)}, {"weight", norm},
                 {"bias", array(model.bias, {kWidth}, Element::kFloat32)},
                 {"epsilon", real(1e-5)}, {"centered", true}, {"groups", whole(kHeads)}});
    add("gather", {{"input", whole(y)}, {"out", whole(turned)},
                   {"order", array(model.order, {kWidth}, Element::kInt32)}});
    int a = quantized(turned, kWidth);
    linear(turned, a, q, 0), linear(turned, a, k, 1, true), linear(turned, a, v, 2, true);
    rotary(q, kHeads), rotary(k, kKept);
    add("join", {{"inputs", std::vector<int64_t>{k, v}}, {"out", whole(both)},
                 {"widths", std::vector<int64_t>{kHeadDim, kHeadDim}}, {"outer", whole(kKept)}});
    add("split", {{"input", whole(both)}, {"outs", std::vector<int64_t>{k, v}},
                  {"outer", whole(kKept)}, {"widths", std::vector<int64_t>{kHeadDim, kHeadDim}}});
    attention(q, k, v, y);
    a = quantized(y, kWidth);
    linear(y, a, q, 3);
    add("add", {{"left", whole(x)}, {"right", whole(q)}, {"out", whole(x)}});
    a = quantized(x, kWidth);
    linear(x, a, up, 4), linear(x, a, gate, 5, true);
    add("activation", {{"input", whole(gate)}, {"out", whole(gate)}, {"function", std::string("silu")},
                      {"number", Value{}}});
    add("multiply", {{"left", whole(up)}, {"right", whole(gate)}, {"out", whole(up)}});
    add("gate", {{"input", whole(gate)}, {"right", whole(up)}, {"out", whole(up)},
                 {"function", std::string("gelu")}});
    a = quantized(up, kInner);
    linear(up, a, q, 6);
    experts(q, y);
    add("add", {{"left", whole(q)}, {"right", whole(y)}, {"out", whole(q)}});
    add("select", {{"input", whole(q)}, {"out", whole(last)}});
    linear(last, -1, logits, crumb::Matrix{nullptr, &model.words});
  }

  std::vector<float> run() {
    int32_t tokens[kRows], positions[kRows];
    for (int row = 0; row < kRows; ++row)
      tokens[row] = row * 5 % kVocabulary, positions[row] = row < 18 ? row : row - 18;
    const int32_t first[] = {3, 0}, second[] = {6}, selected[kSelected] = {20, 17, 0, 3, 18};
    const Segment segments[] = {{0, 18, 0, first}, {18, 3, 0, second}};
    engine.run({tokens, positions, kRows, segments, 2, selected, kSelected,
                int64_t(engine.operations.size())});
    const Buffer& logits = engine.buffers.back();
    return {logits.data, logits.data + kSelected * logits.stride};
  }
};

}  // namespace

void check_engine(const Sets& sets) {
  const Model model;
  for (const KernelTable* set : sets.tables) {
    const std::vector<float> alone = Machine(model, *set, 1).run();
    for (int threads : {2, 3, 5})
      for (int k = 0; k < 3; ++k) {
        const std::vector<float> shared = Machine(model, *set, threads).run();
        expect_same(shared.data(), alone.data(), int64_t(alone.size()), [&] {
          return text("engine %s: %d threads differ from 1", set->name, threads);
        });
      }
    for (float each : alone)
      expect(std::isfinite(each), [&] { return text("engine %s: not finite", set->name); });
  }
}

}  // namespace crumb::check
