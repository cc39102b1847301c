// What a file of native/operations needs: it defines one kind, made of Arguments and checked there,
// and registers it by name; nothing else lists kinds.
// In: arguments, the engine they name buffers of. Out: an Operation. Throws std::invalid_argument
// where sizes disagree, WrongType for arguments of another type.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "arguments.hpp"
#include "engine.hpp"

namespace crumb {

// The arguments of an operation, and checked access to what they name.
class Maker {
 public:
  Maker(Arguments& arguments, Engine& engine) : of(arguments), engine(engine) {}

  Arguments& of;
  Engine& engine;

  // Index of a buffer that holds all rows that reach the operation.
  int buffer(const char* name) { return checked(of.integer(name)); }
  std::vector<int> buffers(const char* name) {
    std::vector<int> indices;
    for (int64_t index : of.integers(name)) indices.push_back(checked(index));
    return indices;
  }
  // Index of a buffer of any rows.
  int any_buffer(const char* name) { return existing(of.integer(name)); }
  const Buffer& at(int index) const { return engine.buffers[index]; }
  int64_t width(int index) const { return at(index).width; }
  Matrix matrix(const char* name) {
    const int64_t index = of.integer(name);
    require(index >= 0 && index < int64_t(engine.matrices.size()), "no such matrix");
    return engine.matrices[index];
  }
  // Index of int8 activations with a row for each of a step's.
  int activations(const char* name) {
    const int64_t index = of.integer(name);
    require(index >= 0 && index < int64_t(engine.activations.size()), "no activations");
    require(engine.activation_rows[index] >= engine.limits.rows(), "activations: too few rows");
    return int(index);
  }
  // What the operation keeps of each sequence: so many floats of the rows of "states".
  States states(int64_t floats) {
    const ArrayView rows = of.array("states", Element::kFloat32, 2, true);
    const int64_t begin = of.integer("begin");
    require(engine.limits.selected_rows == 0, "states: behind select");
    require(rows.data && rows.shape[0] > 0, "states: none");
    require(begin >= 0 && begin % kLaneFloats == 0 && rows.shape[1] % kLaneFloats == 0 &&
                floats <= rows.shape[1] - begin, "states: too narrow");
    engine.limits.states = std::min(engine.limits.states, rows.shape[0]);
    engine.limits.keeps_state = true;
    return {static_cast<float*>(rows.data) + begin, rows.shape[1]};
  }
  // Whether two buffers share no memory.
  bool apart(int a, int b) const {
    const Buffer &x = at(a), &y = at(b);
    return x.data + x.rows * x.stride <= y.data || y.data + y.rows * y.stride <= x.data;
  }

 private:
  int existing(int64_t index) const {
    require(index >= 0 && index < int64_t(engine.buffers.size()), "no such buffer");
    return int(index);
  }
  int checked(int64_t index) const {
    existing(index);
    require(engine.buffers[index].rows >= engine.limits.rows(), "buffer: too few rows");
    return int(index);
  }
};

// Adds a matrix's float columns, if it has any, to what its codes gave for some tiles.
inline void add_columns(const Worker& worker, const Matrix& matrix, const float* x, int64_t x_stride,
                        int64_t rows, float* out, int64_t out_stride, Share tiles) {
  if (matrix.beside)
    worker.kernels().add_columns({*matrix.beside, x, x_stride, rows, out, out_stride, tiles.begin,
                                  tiles.end});
}

// Makes an operation; null where it joined the one before.
using Make = std::unique_ptr<Operation> (*)(Maker&);

struct Registration {
  Registration(const char* kind, Make make);
};

// One line in a kind's file: `const Register<Norm> registered("norm");`
template <class Kind>
struct Register : Registration {
  explicit Register(const char* kind)
      : Registration(kind, [](Maker& maker) -> std::unique_ptr<Operation> {
          return std::make_unique<Kind>(maker);
        }) {}
};

// The elementwise function of this name.
int function_named(const std::string& name);

// Appends an operation of this kind to an engine. Throws std::invalid_argument, WrongType.
void add_operation(Engine& engine, const std::string& kind, Arguments arguments);
std::vector<std::string> operation_kinds();

}  // namespace crumb
