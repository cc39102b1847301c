// The only file that knows Python: checks shapes, releases the GIL, calls the kernels.
// In: C-contiguous NumPy arrays, outputs included. Out: outputs filled in place.
// Raises TypeError for another dtype or order, ValueError where shapes disagree; the Python face
// validates meaning.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "bindings_checks.hpp"
#include "draw_bindings.hpp"
#include "engine_bindings.hpp"
#include "kernels.hpp"
#include "limits_bindings.hpp"
#include "numbers_bindings.hpp"
#include "product_bindings.hpp"
#include "tile.hpp"

namespace nb = nanobind;
using namespace crumb;

using Floats = Array<const float, 2>;
using FloatsOut = Array<float, 2>;
using Vector = Array<const float, 1>;
using Bytes = Array<const uint8_t, 2>;
using BytesOut = Array<uint8_t, 2>;
using Levels = Array<const int8_t, 1>;
using Groups = Array<const int32_t, 1>;

namespace {

template <class A>
bool is(const A& array, size_t rows, size_t columns) {
  return array.shape(0) == rows && array.shape(1) == columns;
}

std::vector<std::string> supported_sets() {
  Choice choices[kMaxChoices];
  const int count = list_choices(choices);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i)
    if (choices[i].supported) names.emplace_back(choices[i].table->name);
  return names;
}

std::vector<std::tuple<std::string, bool, std::string>> compiled_sets() {
  Choice choices[kMaxChoices];
  const int count = list_choices(choices);
  std::vector<std::tuple<std::string, bool, std::string>> rows;
  for (int i = 0; i < count; ++i)
    rows.emplace_back(choices[i].table->name, choices[i].supported, choices[i].needs);
  return rows;
}

constexpr int64_t kMostHeaderBytes = 1 << 16;  // of a block, far above any

void require_bits(int bits) { require(bits >= 1 && bits <= 8, "bits must be 1 to 8"); }

// A group never reaches past the row, so its workspace is bounded by the row.
int64_t within(int64_t group_width, size_t columns) {
  return std::min(group_width, std::max<int64_t>(int64_t(columns), 1));
}

void pack(Bytes codes, BytesOut packed, int bits) {
  require_bits(bits);
  const size_t rows = codes.shape(0), count = codes.shape(1);
  require(is(packed, rows, (count * bits + 7) / 8), "packed has the wrong shape");
  nb::gil_scoped_release release;
  pack_codes(codes.data(), packed.data(), rows, count, bits);
}

void unpack(Bytes packed, BytesOut codes, int bits) {
  require_bits(bits);
  const size_t rows = codes.shape(0), count = codes.shape(1);
  require(is(packed, rows, (count * bits + 7) / 8), "packed has the wrong shape");
  nb::gil_scoped_release release;
  unpack_codes(packed.data(), codes.data(), rows, count, bits);
}

// The levels of a table, null where there is none.
const float* require_levels(const Vector& levels, int zero) {
  const size_t count = levels.shape(0);
  if (count == 0) return nullptr;
  require(count <= kMostLevels && zero == kFixed, "levels: 16 at most, and a fixed zero");
  for (size_t k = 1; k < count; ++k)
    require(levels.data()[k - 1] < levels.data()[k], "levels must ascend");
  return levels.data();
}

void sweep(const std::string& isa, Floats start, Floats weights, Floats factor, Floats scale,
           Floats offset, Groups group, BytesOut codes, FloatsOut error, int largest_code,
           int zero, bool rounding, Vector levels) {
  const size_t rows = weights.shape(0), columns = weights.shape(1), groups = scale.shape(1);
  require(is(start, rows, columns) && is(error, rows, columns), "start or error: wrong shape");
  require(!rounding || is(codes, rows, columns), "codes has the wrong shape");
  require(is(factor, columns, columns), "factor has the wrong shape");
  require(is(scale, rows, groups) && is(offset, rows, groups), "scale or offset: wrong shape");
  require(group.shape(0) == columns, "group has the wrong shape");
  require(zero >= kFixed && zero <= kMinimum, "zero must be 0 to 2");
  require(largest_code >= 0 && largest_code <= 255, "largest_code must be 0 to 255");
  for (size_t j = 0; j < columns; ++j)
    require(group.data()[j] >= 0 && size_t(group.data()[j]) < groups, "group out of range");
  const float* table_levels = require_levels(levels, zero);
  const KernelTable& table = kernels_named(isa);
  nb::gil_scoped_release release;
  table.sweep({start.data(), weights.data(), factor.data(), scale.data(), offset.data(),
               group.data(), rounding ? codes.data() : nullptr, error.data(), int64_t(rows),
               int64_t(columns), int64_t(groups), largest_code, zero, table_levels,
               int64_t(levels.shape(0))});
}

void grid_search(const std::string& isa, Floats weights, Vector importance, Vector shrinks,
                 FloatsOut scale, FloatsOut offset, int64_t group_width, int bits, int zero,
                 Vector levels) {
  require_bits(bits);
  const size_t rows = weights.shape(0), columns = weights.shape(1);
  require(zero >= kFixed && zero <= kMinimum, "zero must be 0 to 2");
  require(group_width > 0, "group_width must be positive");
  group_width = within(group_width, columns);
  const size_t groups = (columns + group_width - 1) / group_width;
  require(importance.shape(0) == columns, "importance has the wrong shape");
  require(is(scale, rows, groups) && is(offset, rows, groups), "scale or offset: wrong shape");
  const float* table_levels = require_levels(levels, zero);
  const KernelTable& table = kernels_named(isa);
  nb::gil_scoped_release release;
  table.grid_search({weights.data(), importance.data(), shrinks.data(), scale.data(),
                     offset.data(), int64_t(rows), int64_t(columns), group_width,
                     int(shrinks.shape(0)), bits, zero, table_levels, int64_t(levels.shape(0))});
}

void require_tile_bits(int bits) {
  require((bits >= 2 && bits <= 6) || bits == 8, "bits must be 2 to 6 or 8");
}

// Blocks of a matrix whose tiles and headers these are, everything about them checked.
template <class Tiles, class Headers>
BlockShape block_shape(const Tiles& tiles, const Headers& headers, size_t rows, size_t columns,
                       int64_t width, int64_t last, int bits) {
  require_tile_bits(bits);
  require(width > 0, "block_width must be positive");
  width = within(width, columns);
  const int64_t blocks = block_count(width, columns), all = headers.shape(1);
  require(blocks > 0 && all % blocks == 0 && all / blocks <= kMostHeaderBytes,
          "headers have the wrong shape");
  const int64_t codes = chunk_bytes(bits) * ((blocks - 1) * chunk_count(width) +
                              chunk_count(block_inputs(width, columns, blocks - 1)));
  require(headers.shape(0) == size_t(tile_count(rows)), "headers have the wrong shape");
  const int64_t header = all / blocks;
  require(last >= 0 && last <= header, "last_header_bytes out of range");
  require(is(tiles, tile_count(rows), codes + all - header + last), "tiles have the wrong shape");
  return {int64_t(rows), int64_t(columns), width, header, last, bits};
}

void pack_matrix(Bytes codes, Bytes headers, BytesOut tiles, int64_t block_width,
                 int64_t last_header_bytes, int bits) {
  const BlockShape shape = block_shape(tiles, headers, codes.shape(0), codes.shape(1), block_width,
                                       last_header_bytes, bits);
  nb::gil_scoped_release release;
  pack_tiles(shape, codes.data(), headers.data(), tiles.data());
}

void unpack_matrix(Bytes tiles, BytesOut codes, BytesOut headers, int64_t block_width,
                   int64_t last_header_bytes, int bits) {
  const BlockShape shape = block_shape(tiles, headers, codes.shape(0), codes.shape(1), block_width,
                                       last_header_bytes, bits);
  nb::gil_scoped_release release;
  unpack_tiles(shape, tiles.data(), codes.data(), headers.data());
}

void decode_matrix(Bytes tiles, Levels table, FloatsOut weights, int64_t group_width, int bits,
                   int zero, int sub) {
  const size_t rows = weights.shape(0), columns = weights.shape(1);
  require_tile_bits(bits);
  require(zero >= kFixed && zero <= kMinimum, "zero must be 0 to 2");
  require(sub >= kNoSub && sub <= kSubQuads, "sub must be 0 to 4");
  require(group_width > 0, "group_width must be positive");
  require(sub == kNoSub || group_width == 32 || (group_width == 16 && sub < kSubPairs),
          "super-blocks need groups of 16 or 32");
  require(sub == kNoSub || sub >= kSubPairs || columns % kSuperInputs == 0,
          "whole super-blocks only");
  const TileShape shape{int64_t(rows), int64_t(columns), within(group_width, columns), bits, zero,
                        sub};
  require(is(tiles, tile_count(rows), tile_bytes(shape)), "tiles have the wrong shape");
  const bool plain = table.shape(0) == 0;
  require(plain || table.shape(0) == size_t(1) << bits, "table has the wrong shape");
  require(plain || zero == kFixed, "with a table zero must be fixed");
  nb::gil_scoped_release release;
  decode_tiles(shape, tiles.data(), plain ? nullptr : table.data(), weights.data());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Crumb's native kernels; use them through crumb.kernels.";
  m.def("supported_sets", &supported_sets, "Instruction sets this machine runs, slowest first.");
  m.def("compiled_sets", &compiled_sets, "(name, whether it runs here, what it needs) of each.");
  bind_draw(m);
  bind_engine(m);
  bind_limits(m);
  bind_numbers(m);
  bind_products(m);
  m.def("pack", &pack, array("codes"), array("packed"), nb::arg("bits"));
  m.def("unpack", &unpack, array("packed"), array("codes"), nb::arg("bits"));
  m.def("sweep", &sweep, nb::arg("isa"), array("start"), array("weights"), array("factor"),
        array("scale"), array("offset"), array("group"), array("codes"), array("error"),
        nb::arg("largest_code"), nb::arg("zero"), nb::arg("rounding"), array("levels"));
  m.def("grid_search", &grid_search, nb::arg("isa"), array("weights"), array("importance"),
        array("shrinks"), array("scale"), array("offset"), nb::arg("group_width"),
        nb::arg("bits"), nb::arg("zero"), array("levels"));
  m.def("pack_tiles", &pack_matrix, array("codes"), array("headers"), array("tiles"),
        nb::arg("block_width"), nb::arg("last_header_bytes"), nb::arg("bits"));
  m.def("unpack_tiles", &unpack_matrix, array("tiles"), array("codes"), array("headers"),
        nb::arg("block_width"), nb::arg("last_header_bytes"), nb::arg("bits"));
  m.def("decode_tiles", &decode_matrix, array("tiles"), array("table"), array("weights"),
        nb::arg("group_width"), nb::arg("bits"), nb::arg("zero"), nb::arg("sub"));
}
