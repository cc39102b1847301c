// Draws of tokens by Python's samplers.
// In: an instruction set, scores (vocabulary,) f32 and their largest, filters, a number of [0, 1).
// Out: the place that is drawn, the GIL released meanwhile.
// Raises ValueError for a number that no sampling has.
#include "draw_bindings.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "bindings_checks.hpp"
#include "draw.hpp"

namespace nb = nanobind;

namespace crumb {
namespace {

struct AlignedDelete {
  void operator()(float* at) const { ::operator delete(at, std::align_val_t(64)); }
};

int64_t draw_token(const std::string& isa, Array<const float, 1> scores, double best,
                   double temperature, int64_t top_k, double top_p, double min_p, double uniform) {
  const int64_t count = scores.shape(0), padded = padded_to(count, kLaneFloats);
  require(count > 0 && count <= kMostWidth, "scores has the wrong shape");
  require(std::isfinite(best), "best is not a number");
  require(temperature > 0.0 && top_k >= 0, "temperature or top_k out of range");
  require(top_p >= 0.0 && top_p <= 1.0 && min_p >= 0.0 && min_p <= 1.0, "a share out of range");
  require(uniform >= 0.0 && uniform < 1.0, "uniform out of range");
  const RunKernels& kernels = kernels_named(isa).run;
  nb::gil_scoped_release release;
  const std::unique_ptr<float, AlignedDelete> room(
      static_cast<float*>(::operator new(2 * size_t(padded) * sizeof(float), std::align_val_t(64))));
  std::copy(scores.data(), scores.data() + count, room.get());
  std::fill(room.get() + count, room.get() + padded, -INFINITY);
  return draw(kernels, room.get(), room.get() + padded, count, float(best),
              {temperature, top_k, top_p, min_p}, uniform);
}

}  // namespace

void bind_draw(nb::module_& m) {
  m.def("draw", &draw_token, nb::arg("isa"), array("scores"), nb::arg("best"),
        nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"),
        nb::arg("uniform"), "The place of one draw from what the filters leave of the scores.");
}

}  // namespace crumb
