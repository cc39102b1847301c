// What a set adds to wide.inl, in plain C++: any processor, and the twin of the faster sets.
// In: one register (part) of a vector. Out: the same. Products are 16-bit integers, which every
// processor multiplies as vectors. Functions that are not inlined keep the file quick to compile.

constexpr int kUnsignedByteZero = 0;  // what a dot product of 8-bit codes has subtracted
constexpr int64_t kFarBytes = 8192, kNearBytes = 1024;  // prefetched ahead
constexpr bool kRaisedCodes = false;  // odd slices are multiplied where they lie
constexpr bool kScaledCodes = false;  // small codes are multiplied by sub-scales when unpacked
constexpr bool kMultipliesPairs = false;  // sums of 16 bits, by sub-scales while they are added
constexpr int kScoredPages = 1, kMixedQueries = 1;
constexpr int kFusedTokens = 4, kMostFusedTokens = 4, kStripTiles = 1, kStripTokens = 4;
constexpr int kFloatTiles = 1, kFloatTokens = 3;  // of float_matmul
#define CRUMB_CALLED __attribute__((noinline))

typedef uint16_t UnsignedShortPart __attribute__((vector_size(kVectorBytes)));

CRUMB_INLINE FloatPart fma_part(FloatPart a, FloatPart b, FloatPart c) { return a * b + c; }

CRUMB_INLINE FloatPart widen_halves(const uint16_t* at) {
  const CodePart half = __builtin_convertvector(load_part<HalfPart>(at), CodePart);
  // Moves the exponent's bias from 15 to 127; subnormals come out right.
  const FloatPart value = (FloatPart)((half & 0x7fffu) << 13) * 0x1p112f;
  const CodePart not_finite = (CodePart)((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (FloatPart)((CodePart)value | not_finite | (half & 0x8000u) << 16);
}

CRUMB_INLINE uint16_t float_to_half(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t(bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536 or more
  if (bits < 0x38800000) {                       // subnormal: round by adding half of 2^-1 ulp
    float small;
    __builtin_memcpy(&small, &bits, 4);
    small += 0.5f;  // the ulp of 0.5 is 2^-24, the spacing of fp16's subnormals
    __builtin_memcpy(&bits, &small, 4);
    return sign | uint16_t(bits - 0x3f000000);
  }
  bits += 0xfff + ((bits >> 13) & 1);  // to nearest, ties to even
  return sign | uint16_t((bits - 0x38000000) >> 13);
}

CRUMB_CALLED void narrow_halves(uint16_t* at, FloatPart x) {
  for (int k = 0; k < kPartLanes; ++k) at[k] = float_to_half(x[k]);
}

// Four bytes to integers.
CRUMB_INLINE IntPart widen_bytes_part(const uint8_t* at) {
  return IntPart{at[0], at[1], at[2], at[3]};
}
CRUMB_INLINE IntPart widen_signed_bytes_part(const int8_t* at) {
  return IntPart{at[0], at[1], at[2], at[3]};
}

// Bytes of the table by index below 16.
CRUMB_CALLED CodePart lookup_part(CodePart index, const uint8_t* table) {
  uint8_t byte[kVectorBytes];
  __builtin_memcpy(byte, &index, sizeof byte);
  for (int k = 0; k < kVectorBytes; ++k) byte[k] = table[byte[k]];
  __builtin_memcpy(&index, byte, sizeof byte);
  return index;
}

// sum += products of pairs of 16-bit integers with one pair.
CRUMB_INLINE IntPart add_pair_products_part(IntPart sum, IntPart pairs, int32_t pair) {
  return sum + (pairs << 16 >> 16) * (pair << 16 >> 16) + (pairs >> 16) * (pair >> 16);
}

// Pairs of 16-bit integers, added.
CRUMB_INLINE IntPart add_pairs(ShortPart pairs) {
  return ((IntPart)pairs << 16 >> 16) + ((IntPart)pairs >> 16);
}

// sum += each row's four codes of `count` slices times four activations.
// Products of codes below 2^bits gather in 16 bits for as many slices as cannot overflow them.
template <int bits, int count>
CRUMB_CALLED void add_products(Ints& sum, const uint8_t* slices, const int8_t* x) {
  constexpr int kMost = bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
  constexpr int kGathered = kMost < count ? kMost : count;
  ShortPart even[count], odd[count];  // activations 0 and 2, 1 and 3 of each slice
  for (int s = 0; s < count; ++s) {
    uint32_t four;
    __builtin_memcpy(&four, x + 4 * s, 4);
    odd[s] = (ShortPart)(four - CodePart{});
    even[s] = odd[s] << 8 >> 8;
    odd[s] >>= 8;
  }
#pragma GCC unroll 1
  for (int i = 0; i < kParts; ++i) {
    for (int first = 0; first < count; first += kGathered) {
      ShortPart a{}, b{};
      for (int s = first; s < first + kGathered; ++s) {
        const auto codes = load_part<UnsignedShortPart>(slices + 64 * s + i * kVectorBytes);
        a += (ShortPart)(codes & 0xff) * even[s];
        b += (ShortPart)(codes >> 8) * odd[s];
      }
      if constexpr (bits < 8) sum.part[i] += add_pairs(a + b);
      else sum.part[i] += add_pairs(a) + add_pairs(b);
    }
  }
}

// chain[0] += each row's four codes of a slice times four activations, for `count` slices of a
// chunk from `first` on; x is the chunk's.
template <int bits, int chains, int first = 0, int count = 8>
CRUMB_INLINE void dot_chunk(Ints (&chain)[chains], const Codes (&slices)[8], const int8_t* x) {
  add_products<bits, count>(chain[0], reinterpret_cast<const uint8_t*>(slices + first),
                            x + 4 * first);
}

// dot[k][t] += unpacked tile k times token t over `count` times so many slices.
template <int bits, int slices = 8, int tiles, int tokens>
CRUMB_INLINE void dot_strip(Ints (&dot)[tiles][tokens], const uint8_t* codes, int64_t strip_bytes,
                            const int8_t* x, int64_t stride, int64_t count) {
  for (int64_t piece = 0; piece < count; ++piece)
    for (int k = 0; k < tiles; ++k)
      for (int t = 0; t < tokens; ++t)
        add_products<bits, slices>(dot[k][t], codes + k * strip_bytes + slices * 64 * piece,
                                   x + t * stride + 4 * slices * piece);
}
