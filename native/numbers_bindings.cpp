// Numbers and sizes that Python shares with the kernels, as the headers have them.
// In: sizes of a model. Out: bytes and floats that the engine asks of its caller.
// Raises ValueError for sizes above any model's, whose products would leave 64 bits.
#include "numbers_bindings.hpp"

#include <nanobind/stl/optional.h>

#include <optional>
#include <string>

#include "bindings_checks.hpp"
#include "grouping.hpp"

namespace nb = nanobind;

namespace crumb {
namespace {

int64_t width(const char* name, int64_t count) {
  if (count < 0 || count > kMostWidth)
    throw std::invalid_argument(std::string(name) + " must be 0 to " + std::to_string(kMostWidth));
  return count;
}

}  // namespace

void bind_numbers(nb::module_& m) {
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.def("matmul_scratch_bytes",
        [](int64_t columns) { return matmul_scratch_bytes(width("columns", columns)); },
        nb::arg("columns"));
  m.def("attention_scratch_floats",
        [](int64_t tokens, int64_t head_dim) {
          return attention_scratch_floats(width("context_tokens", tokens),
                                          width("head_dim", head_dim));
        },
        nb::arg("context_tokens"), nb::arg("head_dim"));
  m.def("grouped_rows",
        [](int64_t pairs, int64_t groups) {
          return grouped_rows(width("pairs", pairs), width("groups", groups));
        },
        nb::arg("pairs"), nb::arg("groups"));
  m.def("grouping_integers",
        [](int64_t pairs, int64_t groups) {
          return grouping_integers(width("pairs", pairs), width("groups", groups));
        },
        nb::arg("pairs"), nb::arg("groups"));
  m.def("cache_head_bytes",
        [](int64_t head_dim, int kind, std::optional<int64_t> value_dim) {
          require(is_cache_kind(kind), "cache: unknown kind");
          return cache_head_bytes(width("head_dim", head_dim), kind,
                                  width("value_dim", value_dim.value_or(head_dim)));
        },
        nb::arg("head_dim"), nb::arg("kind"), nb::arg("value_dim").none() = nb::none());
}

}  // namespace crumb
