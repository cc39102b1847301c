// Single steps of a forward pass over whole texts: attention, norm, activation, rotary.
// In: C-contiguous f32 arrays (texts, tokens, features) of NumPy, outputs included. Out: outputs
// filled in place by one thread, the GIL released; who calls runs several texts side by side.
// Raises TypeError for another dtype or order, ValueError where sizes disagree.
#include "step_bindings.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings_checks.hpp"
#include "kernels.hpp"

namespace nb = nanobind;

namespace crumb {
namespace {

using Texts = Array<const float, 3>;
using TextsOut = Array<float, 3>;
using Vector = Array<const float, 1>;

constexpr int64_t kVector = 16;        // floats of a kernel's vector

template <class A, class B>
void require_same(const A& a, const B& b, const char* what) {
  for (size_t k = 0; k < 3; ++k) require(a.shape(k) == b.shape(k), what);
}

// Zeros that begin at a multiple of 64 bytes.
class Aligned {
 public:
  explicit Aligned(int64_t bytes) : bytes_(bytes + 64) {}
  uint8_t* data() {
    return bytes_.data() + (-reinterpret_cast<uintptr_t>(bytes_.data()) & 63);
  }
  float* floats() { return reinterpret_cast<float*>(data()); }

 private:
  std::vector<uint8_t> bytes_;
};

void attention(const std::string& isa, Texts query, Texts key, Texts value, TextsOut out,
               int heads, int key_value_heads, float scale, float soft_cap, int64_t window) {
  const int64_t texts = query.shape(0), tokens = query.shape(1), width = query.shape(2);
  require(heads > 0 && key_value_heads > 0 && heads % key_value_heads == 0, "heads do not divide");
  require(width > 0 && width <= kMostWidth && width % heads == 0, "query: wrong width");
  const int64_t dim = width / heads, kept = dim * key_value_heads;
  require_same(query, out, "out has the wrong shape");
  require_same(key, value, "value has the wrong shape");
  require(int64_t(key.shape(0)) == texts && int64_t(key.shape(1)) == tokens &&
              int64_t(key.shape(2)) == kept, "key has the wrong shape");
  require(window >= 0 && soft_cap >= 0.0f, "window or soft_cap is negative");
  const RunKernels& kernels = kernels_named(isa).run;
  const int64_t page_count = (tokens + kPageTokens - 1) / kPageTokens;
  require(page_count <= INT32_MAX, "too many tokens");
  nb::gil_scoped_release release;
  const int64_t head_bytes = cache_head_bytes(dim, kFloat32);
  const int64_t page_bytes = head_bytes * key_value_heads;
  Aligned pool(page_bytes * page_count), scratch(4 * attention_scratch_floats(tokens, dim));
  std::vector<int32_t> pages(page_count);
  std::iota(pages.begin(), pages.end(), 0);
  const Segment segment{0, tokens, 0, pages.data()};
  const Cache cache{pool.data(), page_bytes, head_bytes, kFloat32};
  for (int64_t text = 0; text < texts; ++text) {
    const int64_t from = text * tokens;
    kernels.cache_store({key.data() + from * kept, value.data() + from * kept, kept, kept, cache,
                         &segment, 1, key_value_heads, int(dim), 0, 1});
    kernels.attention({query.data() + from * width, out.data() + from * width, width, width, cache,
                       &segment, 1, heads, key_value_heads, int(dim), scale, soft_cap, 1, window, 0,
                       1, scratch.floats()});
  }
}

void norm(const std::string& isa, Texts x, TextsOut out, Vector weight,
          std::optional<Vector> bias, float epsilon, bool centered) {
  const int64_t rows = x.shape(0) * x.shape(1), columns = x.shape(2);
  require(columns > 0 && columns <= kMostWidth, "x: wrong width");
  require_same(x, out, "out has the wrong shape");
  require(int64_t(weight.shape(0)) == columns, "weight has the wrong shape");
  require(!bias || int64_t(bias->shape(0)) == columns, "bias has the wrong shape");
  const RunKernels& kernels = kernels_named(isa).run;
  const float* shift = bias ? bias->data() : nullptr;
  nb::gil_scoped_release release;
  if (columns % kVector == 0) {
    kernels.norm({x.data(), out.data(), columns, columns, columns, 0, rows, weight.data(), shift,
                  epsilon, centered});
    return;
  }
  // The kernel reads and writes whole vectors, so a row that ends inside one has a padded place.
  std::vector<float> padded(padded_to(columns, kVector));
  const int64_t stride = padded.size(), bytes = columns * sizeof(float);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(padded.data(), x.data() + row * columns, bytes);
    kernels.norm({padded.data(), padded.data(), stride, stride, columns, 0, 1, weight.data(), shift,
                  epsilon, centered});
    std::memcpy(out.data() + row * columns, padded.data(), bytes);
  }
}

void activation(const std::string& isa, Texts x, TextsOut out, int function, float number) {
  require_same(x, out, "out has the wrong shape");
  require((function >= kSilu && function <= kRelu) || (function >= kScale && function <= kClip),
          "unknown function");
  require(function <= kScale || number > 0.0f, "a bound must be above 0");
  const RunKernels& kernels = kernels_named(isa).run;
  const int64_t count = int64_t(x.size()), whole = count / kVector, rest = count % kVector;
  nb::gil_scoped_release release;
  kernels.elementwise({x.data(), nullptr, out.data(), 0, whole, function, number});
  float last[kVector] = {};
  std::memcpy(last, x.data() + whole * kVector, rest * sizeof(float));
  kernels.elementwise({last, nullptr, last, 0, 1, function, number});
  std::memcpy(out.data() + whole * kVector, last, rest * sizeof(float));
}

void rotary(const std::string& isa, Texts x, TextsOut out, Array<const float, 2> turns, int heads,
            bool interleaved) {
  const int64_t texts = x.shape(0), tokens = x.shape(1), width = x.shape(2);
  require(heads > 0 && width > 0 && width <= kMostWidth && width % heads == 0, "x: wrong width");
  require_same(x, out, "out has the wrong shape");
  const int64_t dim = width / heads, dimensions = turns.shape(1);
  require(int64_t(turns.shape(0)) == tokens && tokens <= INT32_MAX && dimensions > 0 &&
              dimensions % 2 == 0 && dimensions <= dim, "turns have the wrong shape");
  const RunKernels& kernels = kernels_named(isa).run;
  nb::gil_scoped_release release;
  std::vector<int32_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), 0);
  for (int64_t text = 0; text < texts; ++text) {
    const int64_t from = text * tokens * width;
    kernels.rotary({x.data() + from, out.data() + from, width, width, positions.data(),
                    turns.data(), heads, int(dim), int(dimensions), interleaved, 0, tokens});
  }
}

}  // namespace

void bind_steps(nb::module_& m) {
  m.def("attention_step", &attention, nb::arg("isa"), array("query"), array("key"), array("value"),
        array("out"), nb::arg("heads"), nb::arg("key_value_heads"), nb::arg("scale"),
        nb::arg("soft_cap"), nb::arg("window"),
        "Causal attention of whole texts; soft_cap 0: none, window 0: none.");
  m.def("norm_step", &norm, nb::arg("isa"), array("x"), array("out"), array("weight"),
        array("bias").none(), nb::arg("epsilon"), nb::arg("centered"),
        "Root mean square norm of each row, or layer norm where centered.");
  m.def("activation_step", &activation, nb::arg("isa"), array("x"), array("out"),
        nb::arg("function"), nb::arg("number"),
        "A function of each element, by its code; number is its own, or 0.");
  m.def("rotary_step", &rotary, nb::arg("isa"), array("x"), array("out"), array("turns"),
        nb::arg("heads"), nb::arg("interleaved"),
        "Rotary embedding; turns are the cosines, then the sines, of each token.");
}

}  // namespace crumb
