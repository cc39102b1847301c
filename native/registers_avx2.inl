// What AVX2 with FMA and F16C adds to wide.inl.
// In: one register (part) of a vector. Out: the same.

#define CRUMB_REGISTER "+x"
constexpr int kUnsignedByteZero = 128;  // 8-bit codes are multiplied as signed: code - 128
constexpr int64_t kFarBytes = 8192, kNearBytes = 1024;  // prefetched ahead
constexpr bool kRaisedCodes = false;  // odd slices are multiplied where they lie
constexpr int kScoredPages = 1, kMixedQueries = 1;
constexpr int kFusedTokens = 4, kMostFusedTokens = 4, kStripTiles = 1, kStripTokens = 4;

CRUMB_INLINE FloatPart fma_part(FloatPart a, FloatPart b, FloatPart c) {
  return _mm256_fmadd_ps(a, b, c);
}
CRUMB_INLINE FloatPart widen_halves(const uint16_t* at) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
CRUMB_INLINE void narrow_halves(uint16_t* at, FloatPart x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Bytes to integers; gcc 12 makes scalars of __builtin_convertvector here.
CRUMB_INLINE IntPart widen_bytes_part(const uint8_t* at) {
  return (IntPart)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}
CRUMB_INLINE IntPart widen_signed_bytes_part(const int8_t* at) {
  return (IntPart)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}

// Bytes of the table by index below 16.
CRUMB_INLINE CodePart lookup_part(CodePart index, const uint8_t* table) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return (CodePart)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), (__m256i)index);
}

CRUMB_INLINE __m256i four_of_each(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

// chain[0] += each row's four codes of a slice times four activations, for `count` slices of a
// chunk from `first` on; x is the chunk's.
// Products of codes below 2^bits gather in 16 bits for as many slices as cannot overflow them.
template <int bits, int chains, int first = 0, int count = 8>
CRUMB_INLINE void dot_chunk(Ints (&chain)[chains], const Codes (&slices)[8], const int8_t* x) {
  constexpr int kMost = bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
  constexpr int kGathered = kMost < count ? kMost : count;
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int from = first; from < first + count; from += kGathered) {
    __m256i gathered[kParts] = {};
#pragma GCC unroll 8
    for (int s = from; s < from + kGathered; ++s) {
      const __m256i four = four_of_each(x + 4 * s);
      EACH_PART(
          __m256i codes = (__m256i)slices[s].part[i]; __m256i by = four;
          if constexpr (bits == 8) {
            const __m256i centered = _mm256_xor_si256(codes, _mm256_set1_epi8(int8_t(0x80)));
            by = _mm256_sign_epi8(four, centered);
            codes = _mm256_abs_epi8(centered);
          }
          gathered[i] = _mm256_add_epi16(gathered[i], _mm256_maddubs_epi16(codes, by)));
    }
    EACH_PART(chain[0].part[i] += (IntPart)_mm256_madd_epi16(gathered[i], ones));
  }
}

// dot[k][t] += unpacked tile k times token t over `count` times so many slices.
template <int bits, int slices = 8, int tiles, int tokens>
CRUMB_INLINE void dot_strip(Ints (&dot)[tiles][tokens], const uint8_t* codes, int64_t strip_bytes,
                            const int8_t* x, int64_t stride, int64_t count) {
  for (int64_t piece = 0; piece < count; ++piece)
    for (int k = 0; k < tiles; ++k) {
      Codes slice[8];
#pragma GCC unroll 8
      for (int s = 0; s < slices; ++s)
        EACH_PART(__builtin_memcpy(&slice[s].part[i],
                                   codes + k * strip_bytes + 64 * (slices * piece + s) +
                                       i * kVectorBytes, kVectorBytes));
#pragma GCC unroll 4
      for (int t = 0; t < tokens; ++t) {
        Ints chain[1] = {dot[k][t]};
        dot_chunk<bits, 1, 0, slices>(chain, slice, x + t * stride + 4 * slices * piece);
        dot[k][t] = chain[0];
      }
    }
}
