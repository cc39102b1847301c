// Codes out of the tile layout: 64 * bits bytes become 8 slices of 64 codes, one a byte.
// The places are those of formats/layouts/tile.py. A table of 16 bytes makes a lookup format.

// Lines to come: from memory into the second cache far ahead, from there into the first shortly
// before. One of the two alone leaves 5 to 20 % of the bandwidth unused.
template <int bits>
CRUMB_INLINE void prefetch_codes(const uint8_t* at) {
#pragma GCC unroll 8
  for (int v = 0; v < bits; ++v) {
    __builtin_prefetch(at + 64 * v + kFarBytes, 0, 2);
    __builtin_prefetch(at + 64 * v + kNearBytes, 0, 3);
  }
}

// How far odd slices may stay raised: a vector of 2-, 3- or 4-bit codes holds them that much higher,
// and their sums can be lowered once for all.
constexpr int raised_by(int bits) { return bits <= 4 ? bits : 0; }

template <int bits, bool raised = false>
CRUMB_INLINE void unpack_chunk(const uint8_t* at, Codes (&out)[8]) {
  constexpr int up = raised ? raised_by(bits) : 0;
  Codes p[bits];
#pragma GCC unroll 8
  for (int v = 0; v < bits; ++v) {
    p[v] = load_codes(at + 64 * v);
    pin(p[v]);
  }
  if constexpr (bits == 2) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      out[4 * v] = field<0, 3>(p[v]);
      out[4 * v + 1] = field<2 - up, 3 << up>(p[v]);
      if constexpr (raised) {
        const Codes high = field<4, 255>(p[v]);
        out[4 * v + 2] = field<0, 3>(high);
        out[4 * v + 3] = field<0, 3 << up>(high);
      } else {
        out[4 * v + 2] = field<4, 3>(p[v]);
        out[4 * v + 3] = field<6, 3>(p[v]);
      }
    }
  } else if constexpr (bits == 3) {
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v) {
      out[2 * v] = field<0, 7>(p[v]);
      out[2 * v + 1] = field<3 - up, 7 << up>(p[v]);
    }
    out[6] = field<6, 3>(p[0]) | field<4, 4>(p[2]);
    out[7] = field<6 - up, 3 << up>(p[1]) | field<5 - up, 4 << up>(p[2]);
  } else if constexpr (bits == 4) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      out[2 * v] = field<0, 15>(p[v]);
      out[2 * v + 1] = field<4 - up, 15 << up>(p[v]);
    }
  } else if constexpr (bits == 5) {
#pragma GCC unroll 5
    for (int v = 0; v < 5; ++v) out[v] = field<0, 31>(p[v]);
    out[5] = field<5, 7>(p[0]) | field<2, 24>(p[3]);
    out[6] = field<5, 7>(p[1]) | field<2, 24>(p[4]);
    out[7] = field<5, 7>(p[2]) | field<4, 8>(p[3]) | field<3, 16>(p[4]);
  } else if constexpr (bits == 6) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const Codes *a = p + 3 * h;
      out[4 * h] = field<0, 63>(a[0]);
      out[4 * h + 1] = field<0, 63>(a[1]);
      out[4 * h + 2] = field<0, 63>(a[2]);
      out[4 * h + 3] = field<6, 3>(a[0]) | field<4, 12>(a[1]) | field<2, 48>(a[2]);
    }
  } else {
    static_assert(bits == 8);
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) out[v] = p[v];
  }
}

CRUMB_INLINE void look_up(Codes (&slices)[8], const uint8_t* table) {
#pragma GCC unroll 8
  for (int s = 0; s < 8; ++s)
    EACH_PART(slices[s].part[i] = lookup_part(slices[s].part[i], table));
}
