// A step of the engine with every kind of operation: the same bits on any number of threads.
// In: a small made-up model and two sequences. Out: a line where 2, 3 or 5 threads differ from 1.
// Run under a thread sanitizer it also shows where two threads touch one number unordered.
#include "engine.hpp"
#include "matrix.hpp"

namespace crumb::check {
namespace {

constexpr int kRows = 21, kSelected = 5, kVocabulary = 37, kPositions = 40;
constexpr int kHeads = 4, kKept = 2, kHeadDim = 12, kDimensions = 8;
constexpr int kWidth = kHeads * kHeadDim, kKeptWidth = kKept * kHeadDim, kInner = 100;

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
  Engine engine;

  Machine(const Model& of, const KernelTable& set, int threads)
      : model(of), scratch(threads * scratch_bytes),
        pages(8 * kKept * cache_head_bytes(kHeadDim, kFloat16)),
        engine(set, threads, scratch.data(), scratch_bytes) {
    add_operations();
  }

  int buffer(int64_t rows, int64_t width) {
    const int64_t stride = padded_to(width, 16);
    floats.emplace_back(rows * stride);
    engine.buffers.push_back({floats.back().data(), rows, width, stride});
    return int(engine.buffers.size()) - 1;
  }
  int quantized(int from, int64_t columns) {
    const int64_t stride = padded_to(columns, 32) + kActivationPad, blocks = (columns + 31) / 32;
    codes.emplace_back(padded_to(kRows, 32) * stride);
    floats.emplace_back(kRows * ((columns + kBlockInputs - 1) / kBlockInputs));
    sums.emplace_back(kRows * blocks);
    engine.activations.push_back({codes.back().data(), floats.back().data(), sums.back().data(),
                                  stride, blocks, columns, 32});
    const int index = int(engine.activations.size()) - 1;
    engine.operations.push_back(Quantize{from, index});
    return index;
  }
  Linear linear(int in, int activations, int out, int tile) {
    return {in, activations, out, {&model.tiles[tile], nullptr}, nullptr};
  }

  void add_operations() {
    auto& all = engine.operations;
    const int x = buffer(kRows, kWidth), y = buffer(kRows, kWidth), q = buffer(kRows, kWidth);
    const int k = buffer(kRows, kKeptWidth), v = buffer(kRows, kKeptWidth);
    const int turned = buffer(kRows, kWidth);
    const int up = buffer(kRows, kInner), gate = buffer(kRows, kInner);
    const int last = buffer(kSelected, kWidth), logits = buffer(kSelected, kVocabulary);
    all.push_back(Embed{false, x, {nullptr, &model.words}});
    all.push_back(Norm{x, y, model.norm.data(), model.bias.data(), 1e-5f, true});
    all.push_back(Gather{y, turned, model.order.data()});
    int a = quantized(turned, kWidth);
    all.push_back(LinearGroup{{linear(turned, a, q, 0), linear(turned, a, k, 1), linear(turned, a, v, 2)}});
    all.push_back(Rotary{q, q, kHeads, kHeadDim, kDimensions, false, model.turns.data()});
    all.push_back(Rotary{k, k, kKept, kHeadDim, kDimensions, false, model.turns.data()});
    const int64_t head_bytes = cache_head_bytes(kHeadDim, kFloat16);
    all.push_back(Attention{q, k, v, y, kHeads, kKept, kHeadDim, 0.3f, 0, true, 0,
                            {pages.data(), kKept * head_bytes, head_bytes, kFloat16}});
    a = quantized(y, kWidth);
    all.push_back(LinearGroup{{linear(y, a, q, 3)}});
    all.push_back(Elementwise{x, q, x, kAdd});
    a = quantized(x, kWidth);
    all.push_back(LinearGroup{{linear(x, a, up, 4), linear(x, a, gate, 5)}});
    all.push_back(Elementwise{gate, -1, gate, kSilu});
    all.push_back(Elementwise{up, gate, up, kMultiply});
    a = quantized(up, kInner);
    all.push_back(LinearGroup{{linear(up, a, q, 6)}});
    all.push_back(Select{q, last});
    all.push_back(LinearGroup{{{last, -1, logits, {nullptr, &model.words}, nullptr}}});
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
