// What AVX-512 with VNNI adds to wide.inl.
// In: one register (part) of a vector. Out: the same.

#define CRUMB_REGISTER "+v"
constexpr int kUnsignedByteZero = 0;
constexpr int64_t kFarBytes = 8192, kNearBytes = 1024;  // prefetched ahead
constexpr bool kRaisedCodes = true;  // odd slices are multiplied where they lie
constexpr int kMixedQueries = 4;
constexpr int kFusedTokens = 8, kMostFusedTokens = 32, kStripTiles = 2, kStripTokens = 6;

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

// dot[k][t] += unpacked tile k times token t over `count` times so many slices. Activations are broadcast once for
// all tiles: loads, not multiplications, would be the limit otherwise.
template <int bits, int slices = 8, int tiles, int tokens>
CRUMB_INLINE void dot_strip(Ints (&dot)[tiles][tokens], const uint8_t* codes, int64_t strip_bytes,
                            const int8_t* x, int64_t stride, int64_t count) {
  for (int64_t s = 0; s < slices * count; ++s) {
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
}
