// Numbers, kinds and sizes that Python shares with the kernels, as the headers have them.
// In: sizes of a model. Out: kinds by name; bytes and floats that the engine asks of its caller.
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

struct Named {
  const char* name;
  int number;
};

nb::dict by_name(std::initializer_list<Named> rows) {
  nb::dict table;
  for (const Named& row : rows) table[row.name] = row.number;
  return table;
}

nb::dict few_tokens() {
  nb::dict table;
  Choice choices[kMaxChoices];
  const int count = list_choices(choices);
  for (int k = 0; k < count; ++k)
    table[choices[k].table->name] = choices[k].table->run.few_tokens;
  return table;
}

}  // namespace

void bind_numbers(nb::module_& m) {
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.attr("BLOCK_INPUTS") = kBlockInputs;
  m.attr("FEW_TOKENS") = few_tokens();
  m.attr("ZERO_KINDS") = by_name({{"fixed", kFixed}, {"variable", kVariable}, {"minimum", kMinimum}});
  m.attr("SUB_KINDS") = by_name({{"none", kNoSub}, {"bytes", kSubBytes}, {"digits", kSubDigits}, {"pairs", kSubPairs}, {"quads", kSubQuads}});
  m.attr("FLOAT_KINDS") =
      by_name({{"float32", kFloat32}, {"float16", kFloat16}, {"bfloat16", kBfloat16}});
  m.attr("CACHE_KINDS") = by_name({{"f32", kFloat32}, {"f16", kFloat16}, {"int8", kInt8}});
  m.def("buffer_stride", [](int64_t features) { return buffer_stride(width("width", features)); },
        nb::arg("width"));
  m.def("activation_stride",
        [](int64_t columns) { return activation_stride(width("columns", columns)); },
        nb::arg("columns"));
  m.def("activation_rows", [](int64_t tokens) { return activation_rows(width("tokens", tokens)); },
        nb::arg("tokens"));
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
