// What every bindings file asks of its arguments. In: conditions, arrays, names of instruction sets.
// Out: the kernels of a set. Raises ValueError (std::invalid_argument) with the text given.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "arguments.hpp"
#include "kernels.hpp"

namespace crumb {

template <class T, int dims>
using Array = nanobind::ndarray<T, nanobind::ndim<dims>, nanobind::c_contig,
                                nanobind::device::cpu>;

constexpr int64_t kMostWidth = 1 << 24;  // features, far above any model: products stay in int64
constexpr int kMostThreads = 4096;

inline bool is_cache_kind(int kind) {
  return kind == kFloat32 || kind == kFloat16 || kind == kInt8;
}

inline const KernelTable& kernels_named(const std::string& isa) {
  Choice choices[kMaxChoices];
  const int count = list_choices(choices);
  for (int k = 0; k < count; ++k)
    if (choices[k].supported && isa == choices[k].table->name) return *choices[k].table;
  throw std::invalid_argument("instruction set not compiled or not supported here: " + isa);
}

// An array taken as it is: a converted copy of an output would be filled and thrown away.
inline auto array(const char* name) { return nanobind::arg(name).noconvert(); }

}  // namespace crumb
