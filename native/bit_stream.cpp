// The dense bit stream of formats/bit_stream.py: pack and unpack.
// In: rows of codes or bytes. Out: the other. Least significant bit first, rows padded to a byte.
#include "kernels.hpp"

namespace crumb {

void pack_codes(const uint8_t* codes, uint8_t* packed, int64_t rows, int64_t count, int bits) {
  const int64_t row_bytes = (count * bits + 7) / 8;
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* in = codes + row * count;
    uint8_t* out = packed + row * row_bytes;
    uint32_t window = 0;
    int held = 0;
    for (int64_t j = 0; j < count; ++j) {
      window |= uint32_t(in[j]) << held;
      held += bits;
      while (held >= 8) {
        *out++ = uint8_t(window);
        window >>= 8;
        held -= 8;
      }
    }
    if (held > 0) *out = uint8_t(window);
  }
}

void unpack_codes(const uint8_t* packed, uint8_t* codes, int64_t rows, int64_t count, int bits) {
  const int64_t row_bytes = (count * bits + 7) / 8;
  const uint32_t mask = (1u << bits) - 1;
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* in = packed + row * row_bytes;
    uint8_t* out = codes + row * count;
    uint32_t window = 0;
    int held = 0;
    for (int64_t j = 0; j < count; ++j) {
      while (held < bits) {
        window |= uint32_t(*in++) << held;
        held += 8;
      }
      out[j] = uint8_t(window & mask);
      window >>= bits;
      held -= bits;
    }
  }
}

}  // namespace crumb
