// Products of f32 matrices outside the engine, for what goes back through a model.
// In: C-contiguous NumPy arrays, the rows of the right matrix to multiply. Out: filled in place, by
// one thread, the GIL released; who calls splits the rows over threads.
// Raises TypeError for another dtype or order, ValueError where shapes disagree.
#include "product_bindings.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <new>

#include "bindings_checks.hpp"

namespace nb = nanobind;

namespace crumb {
namespace {

struct AlignedDelete {
  void operator()(uint8_t* at) const { ::operator delete(at, std::align_val_t(64)); }
};

// out[:, begin:end] = left right^T; a turned right matrix lies column by column.
void multiply(const std::string& isa, Array<const float, 2> left, Array<const float, 2> right,
              Array<float, 2> out, bool turned, int64_t begin, int64_t end) {
  const int64_t inputs = left.shape(1), rows = right.shape(turned ? 1 : 0);
  require(int64_t(right.shape(turned ? 0 : 1)) == inputs, "right has the wrong shape");
  require(inputs > 0 && inputs <= kMostWidth && rows > 0 && rows <= INT32_MAX, "a size is 0 or too large");
  require(out.shape(0) == left.shape(0) && int64_t(out.shape(1)) == buffer_stride(rows),
          "out has the wrong shape");
  require(begin >= 0 && begin % 16 == 0 && begin <= end && end <= rows, "rows out of range");
  const FloatMatrix matrix{reinterpret_cast<const uint8_t*>(right.data()), rows, inputs, kFloat32,
                           turned};
  const RunKernels& kernels = kernels_named(isa).run;
  nb::gil_scoped_release release;
  const std::unique_ptr<uint8_t, AlignedDelete> scratch(
      static_cast<uint8_t*>(::operator new(kFloatScratch, std::align_val_t(64))));
  kernels.float_matmul({nullptr, &matrix, left.data(), inputs, int64_t(left.shape(0)), nullptr,
                        out.data(), int64_t(out.shape(1)), begin / 16, (end + 15) / 16,
                        scratch.get()});
}

}  // namespace

void bind_products(nb::module_& m) {
  m.def("multiply", &multiply, nb::arg("isa"), array("left"), array("right"), array("out"),
        nb::arg("turned"), nb::arg("begin"), nb::arg("end"),
        "Columns begin .. end of out = left right^T; a turned right lies column by column.");
}

}  // namespace crumb
