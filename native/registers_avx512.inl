// What AVX-512 with VNNI adds to wide.inl.
// In: one register (part) of a vector. Out: the same.

#define CRUMB_REGISTER "+v"
constexpr int kUnsignedByteZero = 0;
constexpr int64_t kFarBytes = 8192, kNearBytes = 1024;  // prefetched ahead
constexpr bool kRaisedCodes = true;  // odd slices are multiplied where they lie
constexpr bool kScaledCodes = true;  // small codes are multiplied by sub-scales when unpacked
constexpr bool kMultipliesPairs = false;  // sums of 16 bits, by sub-scales while they are added
constexpr int kScoredPages = 2, kMixedQueries = 8;
constexpr int kFusedTokens = 8, kMostFusedTokens = 32, kStripTiles = 2, kStripTokens = 6;
constexpr int kFloatTiles = 2, kFloatTokens = 12;  // of float_matmul

CRUMB_INLINE FloatPart fma_part(FloatPart a, FloatPart b, FloatPart c) {
  return _mm512_fmadd_ps(a, b, c);
}
CRUMB_INLINE FloatPart widen_halves(const uint16_t* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
CRUMB_INLINE void narrow_halves(uint16_t* at, FloatPart x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Bytes to integers; gcc 12 makes scalars of __builtin_convertvector here.
CRUMB_INLINE IntPart widen_bytes_part(const uint8_t* at) {
  return (IntPart)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
CRUMB_INLINE IntPart widen_signed_bytes_part(const int8_t* at) {
  return (IntPart)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

// Bytes of the table by index below 16.
CRUMB_INLINE CodePart lookup_part(CodePart index, const uint8_t* table) {
  const __m128i quarter = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return (CodePart)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(quarter), (__m512i)index);
}

// sum += products of pairs of 16-bit integers with one pair.
CRUMB_INLINE IntPart add_pair_products_part(IntPart sum, IntPart pairs, int32_t pair) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(pairs), "v"(_mm512_set1_epi32(pair)));
  return sum;
}

// sum += each row's four codes times the same four activations.
// Assembly, because gcc 12 spills the accumulators of the intrinsic in register-tiled loops.
CRUMB_INLINE void dot_slice(Ints& sum, const Codes& codes, const int8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum.part[0])
      : "v"(codes.part[0]), "m"(*reinterpret_cast<const int32_t(*)>(x)));
}

// chain[slice % chains] += each row's four codes of a slice times four activations, for `count`
// slices of a chunk from `first` on; x is the chunk's.
template <int bits, int chains, int first = 0, int count = 8>
CRUMB_INLINE void dot_chunk(Ints (&chain)[chains], const Codes (&slices)[8], const int8_t* x) {
#pragma GCC unroll 8
  for (int s = first; s < first + count; ++s) dot_slice(chain[s % chains], slices[s], x + 4 * s);
}

// One slice of dot_strip's 2 tiles for all 6 tokens.
#define CRUMB_STRIP_TOKEN(at, first, second) \
  "vpbroadcastd " at ", %%zmm29\n\t"        \
  "vpdpbusd %%zmm29, %%zmm31, %" first "\n\t" \
  "vpdpbusd %%zmm29, %%zmm30, %" second "\n\t"
#define CRUMB_STRIP_SLICE(codes, x)                              \
  "vmovdqu64 " codes "(%[codes]), %%zmm31\n\t"                   \
  "vmovdqu64 " codes "(%[codes],%[apart]), %%zmm30\n\t"          \
  CRUMB_STRIP_TOKEN(x "(%[x])", "0", "6")                        \
  CRUMB_STRIP_TOKEN(x "(%[x],%[stride])", "1", "7")              \
  CRUMB_STRIP_TOKEN(x "(%[x],%[stride],2)", "2", "8")            \
  CRUMB_STRIP_TOKEN(x "(%[third])", "3", "9")                    \
  CRUMB_STRIP_TOKEN(x "(%[third],%[stride])", "4", "10")         \
  CRUMB_STRIP_TOKEN(x "(%[third],%[stride],2)", "5", "11")
#define CRUMB_STRIP_SLICES(...)                                                                   \
  asm(__VA_ARGS__                                                                                 \
      : "+v"(dot[0][0].part[0]), "+v"(dot[0][1].part[0]), "+v"(dot[0][2].part[0]),                \
        "+v"(dot[0][3].part[0]), "+v"(dot[0][4].part[0]), "+v"(dot[0][5].part[0]),                \
        "+v"(dot[1][0].part[0]), "+v"(dot[1][1].part[0]), "+v"(dot[1][2].part[0]),                \
        "+v"(dot[1][3].part[0]), "+v"(dot[1][4].part[0]), "+v"(dot[1][5].part[0])                 \
      : [codes] "r"(codes), [apart] "r"(strip_bytes), [x] "r"(x), [third] "r"(x + 3 * stride),    \
        [stride] "r"(stride)                                                                      \
      : "xmm29", "xmm30", "xmm31", "memory")

// The same as below for 2 tiles and 6 tokens. Assembly, because gcc 12 moves the sums from register
// to register between intrinsics.
template <int slices>
CRUMB_INLINE void dot_full_strip(Ints (&dot)[2][6], const uint8_t* codes, int64_t strip_bytes,
                                 const int8_t* x, int64_t stride, int64_t count) {
  for (int64_t piece = 0; piece < count; ++piece) {
    if constexpr (slices == 8)
      CRUMB_STRIP_SLICES(CRUMB_STRIP_SLICE("0", "0") CRUMB_STRIP_SLICE("64", "4")
                         CRUMB_STRIP_SLICE("128", "8") CRUMB_STRIP_SLICE("192", "12")
                         CRUMB_STRIP_SLICE("256", "16") CRUMB_STRIP_SLICE("320", "20")
                         CRUMB_STRIP_SLICE("384", "24") CRUMB_STRIP_SLICE("448", "28"));
    else
      CRUMB_STRIP_SLICES(CRUMB_STRIP_SLICE("0", "0") CRUMB_STRIP_SLICE("64", "4")
                         CRUMB_STRIP_SLICE("128", "8") CRUMB_STRIP_SLICE("192", "12"));
    codes += slices * 64;
    x += slices * 4;
  }
}

// dot[k][t] += unpacked tile k times token t over `count` times so many slices. Activations are broadcast once for
// all tiles: loads, not multiplications, would be the limit otherwise.
template <int bits, int slices = 8, int tiles, int tokens>
CRUMB_INLINE void dot_strip(Ints (&dot)[tiles][tokens], const uint8_t* codes, int64_t strip_bytes,
                            const int8_t* x, int64_t stride, int64_t count) {
  if constexpr (tiles == 2 && tokens == 6)
    return dot_full_strip<slices>(dot, codes, strip_bytes, x, stride, count);
  for (int64_t piece = 0; piece < count; ++piece) {
#pragma GCC unroll 8
    for (int s = 0; s < slices; ++s) {
      Codes slice[tiles];
#pragma GCC unroll 2
      for (int k = 0; k < tiles; ++k) slice[k] = load_codes(codes + k * strip_bytes + 64 * s);
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) {
        int32_t four;
        __builtin_memcpy(&four, x + t * stride + 4 * s, 4);
        const __m512i by = _mm512_set1_epi32(four);
#pragma GCC unroll 2
        for (int k = 0; k < tiles; ++k)
          asm("vpdpbusd %2, %1, %0" : "+v"(dot[k][t].part[0]) : "v"(slice[k].part[0]), "v"(by));
      }
    }
    codes += slices * 64;
    x += slices * 4;
  }
}
