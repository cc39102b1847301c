// Rows of a step dealt out to groups: each group's rows lie together, so that what belongs to the
// group is read once. In: the group of every pair of token and slot. Out: where each pair's row is.
// Also quantizes and multiplies the rows of one group, and deals work out to threads.
#pragma once

#include "operation.hpp"

namespace crumb {

// Rows for so many pairs: those of a group that AMX multiplies begin at multiples of 16.
static constexpr int64_t grouped_rows(int64_t pairs, int64_t groups) {
  return padded_to(pairs + 15 * (groups < pairs ? groups : pairs), 32);
}
static constexpr int64_t grouping_integers(int64_t pairs, int64_t groups) {
  return 2 * groups + grouped_rows(pairs, groups) + pairs;
}

// Memory of the caller's: grouping_integers of them.
struct Grouping {
  int64_t groups;
  int32_t *first, *count;  // (groups) rows
  int32_t* token;          // (grouped_rows) of each row
  int32_t* place;          // (pairs) row of each pair

  Grouping(int32_t* memory, int64_t pairs, int64_t groups)
      : groups(groups), first(memory), count(memory + groups), token(memory + 2 * groups),
        place(token + grouped_rows(pairs, groups)) {}

  // group(pair) is below `groups`. A group's rows are in the order of their pairs.
  template <class Group>
  void deal(int64_t pairs, int64_t slots, int64_t together_from, Group group) const {
    std::fill(count, count + groups, 0);
    for (int64_t pair = 0; pair < pairs; ++pair) ++count[group(pair)];
    int64_t next = 0;
    for (int64_t g = 0; g < groups; ++g) {
      if (count[g] >= together_from) next = padded_to(next, kTokensTogether);
      first[g] = int32_t(next);
      next += count[g];
      count[g] = 0;
    }
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t g = group(pair), row = first[g] + count[g]++;
      token[row] = int32_t(pair / slots);
      place[pair] = int32_t(row);
    }
  }

  // This thread's share of all rows, group by group: work(group, begin, end), rows of the group.
  template <class Work>
  void share_rows(const Worker& worker, int64_t pairs, Work work) const {
    const Share mine = worker.share(pairs);
    int64_t before = 0;
    for (int64_t g = 0; g < groups && before < mine.end; before += count[g++]) {
      const int64_t begin = std::max(mine.begin - before, int64_t(0));
      const int64_t end = std::min(mine.end - before, int64_t(count[g]));
      if (begin < end) work(g, begin, end);
    }
  }

  // This thread's share of `tiles` tiles of every group that has rows: work(group, begin, end).
  // A tile costs its rows and kUnpacking more; pairs of tiles stay together.
  template <class Work>
  void share_tiles(const Worker& worker, int64_t tiles, Work work) const {
    constexpr int64_t kUnpacking = 8;
    const int64_t twos = (tiles + 1) / 2;
    int64_t total = 0, before = 0;
    for (int64_t g = 0; g < groups; ++g)
      if (count[g]) total += twos * (count[g] + kUnpacking);
    const Share mine = worker.share(total);
    for (int64_t g = 0; g < groups && before < mine.end; ++g) {
      if (!count[g]) continue;
      const int64_t each = count[g] + kUnpacking;
      const auto reached = [&](int64_t cost) {
        return cost <= before ? 0 : std::min((cost - before + each - 1) / each, twos);
      };
      const int64_t begin = 2 * reached(mine.begin), end = std::min(2 * reached(mine.end), tiles);
      if (begin < end) work(g, begin, end);
      before += twos * each;
    }
  }
};

// A matrix of one group, and the int8 activations it reads: -1 where it reads f32.
struct GroupMatrix {
  Matrix matrix;
  int activations;
  bool reads_floats() const { return activations < 0 || matrix.beside; }
};

// The index among `choices` of activations that a matrix can read, -1 where there is none.
inline int activations_for(const Engine& engine, const Matrix& matrix,
                           const std::vector<int64_t>& choices) {
  if (!matrix.tiles) return -1;
  for (int64_t index : choices) {
    const Activations& x = engine.activations[index];
    if (x.columns == matrix.columns() &&
        x.block_inputs == std::min(matrix.tiles->group_width, kBlockInputs))
      return int(index);
  }
  return -1;
}

// Indices of activations with this many rows.
inline std::vector<int64_t> grouped_activations(Maker& maker, int64_t rows) {
  const std::vector<int64_t>& choices = maker.of.integers("activations");
  for (int64_t index : choices) {
    require(index >= 0 && index < int64_t(maker.engine.activations.size()), "no activations");
    require(maker.engine.activation_rows[index] >= rows, "activations: too few rows");
  }
  return choices;
}

// A group's share of activations: its rows alone, as its matrix wants them to lie.
inline Activations rows_of(const Worker& worker, int index, int64_t first, int64_t count) {
  Activations x = worker.engine.activations[index];
  x.codes += first * x.stride;
  x.scale += first * scale_count(x);
  x.sum += first * x.blocks;
  x.together = lie_together(worker.kernels(), count, x.columns);
  return x;
}

// Rows `begin` to `end` of a group quantized; `rows` says where in x each row of the group lies.
inline void quantize_rows(const Worker& worker, const Activations& to, const float* x,
                          int64_t stride, const int32_t* rows, int64_t begin, int64_t end) {
  const int64_t scales = scale_count(to);
  worker.kernels().quantize({x, stride, to, begin * scales, end * scales, rows});
}

// Some tiles of a group's matrix times its rows. f32 rows begin at `x`, outputs at `out`.
inline void multiply_rows(const Worker& worker, const GroupMatrix& of, int64_t first, int64_t count,
                          const float* x, int64_t x_stride, const float* bias, float* out,
                          int64_t out_stride, int64_t first_tile, int64_t last_tile) {
  if (of.activations >= 0)
    worker.kernels().matmul({*of.matrix.tiles, rows_of(worker, of.activations, first, count), count,
                             bias, out, out_stride, first_tile, last_tile, worker.scratch});
  else
    worker.kernels().float_matmul({of.matrix.tiles, of.matrix.floats, x, x_stride, count, bias, out,
                                   out_stride, first_tile, last_tile, worker.scratch});
  add_columns(worker, of.matrix, x, x_stride, count, out, out_stride, {first_tile, last_tile});
}

}  // namespace crumb
