// What AVX2 with FMA and F16C adds to wide.inl.
// In: one register (part) of a vector. Out: the same.

#define CRUMB_REGISTER "+x"
constexpr int kUnsignedByteZero = 128;  // 8-bit codes are multiplied as signed: code - 128
constexpr int64_t kFarBytes = 8192, kNearBytes = 1024;  // prefetched ahead
constexpr bool kRaisedCodes = false;  // odd slices are multiplied where they lie
constexpr bool kScaledCodes = false;  // small codes are multiplied by sub-scales when unpacked
#define CRUMB_MULTIPLIES_PAIRS 1
constexpr bool kMultipliesPairs = true;  // sums of 16 bits, by sub-scales while they are added
constexpr int kScoredPages = 1, kMixedQueries = 1;
constexpr int kFusedTokens = 4, kMostFusedTokens = 4, kStripTiles = 1, kStripTokens = 4;
constexpr int kFloatTiles = 1, kFloatTokens = 6;  // of float_matmul

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

// sum += products of pairs of 16-bit integers with one pair.
CRUMB_INLINE IntPart add_pair_products_part(IntPart sum, IntPart pairs, int32_t pair) {
  return sum + (IntPart)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi32(pair));
}

CRUMB_INLINE __m256i four_of_each(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

// Slices whose products of codes below 2^bits, two in a sum of 16 bits, cannot overflow it.
constexpr int gathered_slices(int bits) {
  return bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
}

// Products of codes and four activations, added in pairs to 16 bits.
template <int bits>
CRUMB_INLINE __m256i multiply_pairs(__m256i codes, __m256i four) {
  if constexpr (bits < 8) return _mm256_maddubs_epi16(codes, four);
  const __m256i centered = _mm256_xor_si256(codes, _mm256_set1_epi8(int8_t(0x80)));
  return _mm256_maddubs_epi16(_mm256_abs_epi8(centered), _mm256_sign_epi8(four, centered));
}

// sum += each row's four codes of a slice times four activations, for `count` slices of a chunk from
// `first` on, each pair of 16-bit sums times its two numbers of `by`; x is the chunk's.
template <int bits, int first, int count>
CRUMB_INLINE void add_chunk(Ints& sum, const Codes (&slices)[8], const int8_t* x, const Ints& by) {
  constexpr int kGathered = gathered_slices(bits) < count ? gathered_slices(bits) : count;
#pragma GCC unroll 8
  for (int from = first; from < first + count; from += kGathered) {
    __m256i gathered[kParts] = {};
#pragma GCC unroll 8
    for (int s = from; s < from + kGathered; ++s) {
      const __m256i four = four_of_each(x + 4 * s);
      EACH_PART(gathered[i] = _mm256_add_epi16(
                    gathered[i], multiply_pairs<bits>((__m256i)slices[s].part[i], four)));
    }
    EACH_PART(sum.part[i] += (IntPart)_mm256_madd_epi16(gathered[i], (__m256i)by.part[i]));
  }
}

// chain[0] += the same times 1.
template <int bits, int chains, int first = 0, int count = 8>
CRUMB_INLINE void dot_chunk(Ints (&chain)[chains], const Codes (&slices)[8], const int8_t* x) {
  Ints ones;
  EACH_PART(ones.part[i] = (IntPart)_mm256_set1_epi16(1));
  add_chunk<bits, first, count>(chain[0], slices, x, ones);
}

// What super_matmul.inl has for the other sets. Multipliers lie twice in 32 bits.
CRUMB_INLINE Ints multiplier(Ints sub_scale) {
  EACH_PART(sub_scale.part[i] = (sub_scale.part[i] & 0xffff) | (sub_scale.part[i] << 16));
  return sub_scale;
}
template <int bits, int chains, int raised, int first, int count>
CRUMB_INLINE void add_group(Ints& sum, const Codes (&slices)[8], const int8_t* x, const Ints& by,
                            const Ints&) {
  add_chunk<bits, first, count>(sum, slices, x, by);
}

// One slice of a tile times four tokens: products begin 16-bit sums, or are added to them.
#define CRUMB_BEGIN(first, second)                        \
  "vpmaddubsw %%ymm15, %%ymm13, %" first "\n\t"           \
  "vpmaddubsw %%ymm15, %%ymm14, %" second "\n\t"
#define CRUMB_ADD(first, second)                          \
  "vpmaddubsw %%ymm15, %%ymm13, %%ymm12\n\t"              \
  "vpmaddubsw %%ymm15, %%ymm14, %%ymm15\n\t"              \
  "vpaddw %%ymm12, %" first ", %" first "\n\t"            \
  "vpaddw %%ymm15, %" second ", %" second "\n\t"
#define CRUMB_GATHER(join, codes, beside, x)                       \
  "vmovdqu " codes "(%[codes]), %%ymm13\n\t"                       \
  "vmovdqu " beside "(%[codes]), %%ymm14\n\t"                      \
  "vpbroadcastd " x "(%[x]), %%ymm15\n\t" join("0", "1")           \
  "vpbroadcastd " x "(%[x],%[stride]), %%ymm15\n\t" join("2", "3") \
  "vpbroadcastd " x "(%[x],%[stride],2), %%ymm15\n\t" join("4", "5") \
  "vpbroadcastd " x "(%[third]), %%ymm15\n\t" join("6", "7")
#define CRUMB_GATHER_SLICES(...)                                                          \
  asm(__VA_ARGS__                                                                         \
      : "=&x"(sum[0][0]), "=&x"(sum[0][1]), "=&x"(sum[1][0]), "=&x"(sum[1][1]),           \
        "=&x"(sum[2][0]), "=&x"(sum[2][1]), "=&x"(sum[3][0]), "=&x"(sum[3][1])            \
      : [codes] "r"(codes), [x] "r"(x), [third] "r"(x + 3 * stride), [stride] "r"(stride) \
      : "xmm12", "xmm13", "xmm14", "xmm15", "memory")
#define CRUMB_TWO_SLICES \
  CRUMB_GATHER(CRUMB_BEGIN, "0", "32", "0") CRUMB_GATHER(CRUMB_ADD, "64", "96", "4")
#define CRUMB_FOUR_SLICES \
  CRUMB_TWO_SLICES        \
  CRUMB_GATHER(CRUMB_ADD, "128", "160", "8") CRUMB_GATHER(CRUMB_ADD, "192", "224", "12")
#define CRUMB_EIGHT_SLICES                                                                 \
  CRUMB_FOUR_SLICES                                                                        \
  CRUMB_GATHER(CRUMB_ADD, "256", "288", "16") CRUMB_GATHER(CRUMB_ADD, "320", "352", "20")  \
  CRUMB_GATHER(CRUMB_ADD, "384", "416", "24") CRUMB_GATHER(CRUMB_ADD, "448", "480", "28")

// sum[t] = an unpacked tile times token t over so many slices, each two products in 16 bits.
// Assembly, because gcc 12 multiplies all slices first and keeps the products in memory.
template <int bits, int slices>
CRUMB_INLINE void gather_four(__m256i (&sum)[4][kParts], const uint8_t* codes, const int8_t* x,
                               int64_t stride) {
  if constexpr (slices == 8)
    CRUMB_GATHER_SLICES(CRUMB_EIGHT_SLICES);
  else if constexpr (slices == 4)
    CRUMB_GATHER_SLICES(CRUMB_FOUR_SLICES);
  else if constexpr (slices == 2)
    CRUMB_GATHER_SLICES(CRUMB_TWO_SLICES);
  else if constexpr (bits < 8)
    CRUMB_GATHER_SLICES(CRUMB_GATHER(CRUMB_BEGIN, "0", "32", "0"));
}
// The same for any number of tokens, and for codes of 8 bits.
template <int bits, int slices, int tokens>
CRUMB_INLINE void gather_strip(__m256i (&sum)[tokens][kParts], const uint8_t* codes,
                               const int8_t* x, int64_t stride) {
  if constexpr (tokens == 4 && bits < 8) return gather_four<bits, slices>(sum, codes, x, stride);
#pragma GCC unroll 8
  for (int s = 0; s < slices; ++s) {
    const Codes slice = load_codes(codes + 64 * s);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) {
      const __m256i four = four_of_each(x + t * stride + 4 * s);
      EACH_PART(const __m256i products = multiply_pairs<bits>((__m256i)slice.part[i], four);
                sum[t][i] = s == 0 ? products : _mm256_add_epi16(sum[t][i], products));
    }
  }
}

// sum[t] += unpacked tile times token t over so many slices, each pair of 16-bit sums times its two
// numbers of `by`.
template <int bits, int slices, int tokens>
CRUMB_INLINE void add_strip(Ints (&sum)[tokens], const uint8_t* codes, const int8_t* x,
                            int64_t stride, const Ints& by) {
  constexpr int kGathered = gathered_slices(bits) < slices ? gathered_slices(bits) : slices;
#pragma GCC unroll 8
  for (int from = 0; from < slices; from += kGathered) {
    __m256i gathered[tokens][kParts];
    gather_strip<bits, kGathered>(gathered, codes + 64 * from, x + 4 * from, stride);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t)
      EACH_PART(sum[t].part[i] +=
                (IntPart)_mm256_madd_epi16(gathered[t][i], (__m256i)by.part[i]));
  }
}

// dot[k][t] += unpacked tile k times token t over `count` times so many slices.
template <int bits, int slices = 8, int tiles, int tokens>
CRUMB_INLINE void dot_strip(Ints (&dot)[tiles][tokens], const uint8_t* codes, int64_t strip_bytes,
                            const int8_t* x, int64_t stride, int64_t count) {
  Ints ones;
  EACH_PART(ones.part[i] = (IntPart)_mm256_set1_epi16(1));
  for (int64_t piece = 0; piece < count; ++piece)
    for (int k = 0; k < tiles; ++k)
      add_strip<bits, slices>(dot[k], codes + k * strip_bytes + slices * 64 * piece,
                              x + 4 * slices * piece, stride, ones);
}

template <int bits, int slices, int tiles, int tokens>
CRUMB_INLINE void add_strip_group(Ints (&sum)[tiles][tokens], const uint8_t* codes,
                                  int64_t strip_bytes, const int8_t* x, int64_t stride,
                                  const Ints (&by)[tiles], const int32_t*, int64_t) {
  for (int k = 0; k < tiles; ++k)
    add_strip<bits, slices>(sum[k], codes + k * strip_bytes, x, stride, by[k]);
}
