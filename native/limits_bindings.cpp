// The Python face of limits.cpp: checks sizes, releases the GIL.
// In: an array of bytes, an instruction set, threads. Out: seconds; multiply-adds per second.
// Raises TypeError for another dtype or order, ValueError for sizes and sets that cannot be.
#include "limits_bindings.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "bindings_checks.hpp"
#include "limits.hpp"

namespace nb = nanobind;

namespace crumb {
namespace {

using Bytes = Array<const uint8_t, 1>;

double read_pass(const std::string& isa, Bytes array, int threads) {
  require(threads >= 1 && threads <= kMostThreads, "threads must be 1 to 4096");
  require(array.shape(0) > 0 && array.shape(0) % 4096 == 0, "array must be pages of 4096 bytes");
  require(reinterpret_cast<uintptr_t>(array.data()) % 64 == 0, "array must be aligned to 64 bytes");
  nb::gil_scoped_release release;
  return read_pass_seconds(isa, array.data(), int64_t(array.shape(0)), threads);
}

template <Products of>
double peak(const std::string& isa, int threads, double seconds) {
  require(threads >= 1 && threads <= kMostThreads, "threads must be 1 to 4096");
  require(seconds >= 0.0 && seconds <= 60.0, "seconds must be 0 to 60");
  nb::gil_scoped_release release;
  return multiply_peak(isa, of, threads, seconds);
}

}  // namespace

void bind_limits(nb::module_& m) {
  m.def("read_pass", &read_pass, nb::arg("isa"), nb::arg("array").noconvert(), nb::arg("threads"),
        "Seconds in which threads together read an array once.");
  m.def("dot_peak", &peak<Products::kBytes>, nb::arg("isa"), nb::arg("threads"),
        nb::arg("seconds"), "Multiply-adds of int8 per second of threads that do nothing else.");
  m.def("float_peak", &peak<Products::kFloats>, nb::arg("isa"), nb::arg("threads"),
        nb::arg("seconds"), "Multiply-adds of f32 per second of threads that do nothing else.");
}

}  // namespace crumb
