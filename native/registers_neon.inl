// What NEON with dot products adds to wide.inl; CRUMB_I8MM: also unsigned times signed bytes.
// In: one register (part) of a vector. Out: the same. Lanes are template arguments, because the
// instructions want constants.

#ifdef CRUMB_I8MM
constexpr int kUnsignedByteZero = 0;
#else
constexpr int kUnsignedByteZero = 128;  // 8-bit codes are multiplied as signed: code - 128
#endif
constexpr int64_t kFarBytes = 8192, kNearBytes = 1024;  // prefetched ahead
constexpr bool kRaisedCodes = false;  // odd slices are multiplied where they lie
constexpr bool kScaledCodes = false;  // small codes are multiplied by sub-scales when unpacked
constexpr bool kMultipliesPairs = false;  // sums of 16 bits, by sub-scales while they are added
constexpr int kScoredPages = 1, kMixedQueries = 1;
constexpr int kFusedTokens = 4, kMostFusedTokens = 4, kStripTiles = 1, kStripTokens = 4;
constexpr int kFloatTiles = 1, kFloatTokens = 6;  // of float_matmul

CRUMB_INLINE FloatPart fma_part(FloatPart a, FloatPart b, FloatPart c) {
  return (FloatPart)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
CRUMB_INLINE FloatPart widen_halves(const uint16_t* at) {
  return (FloatPart)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)));
}
CRUMB_INLINE void narrow_halves(uint16_t* at, FloatPart x) {
  vst1_u16(at, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
}

// Four bytes to integers.
CRUMB_INLINE IntPart widen_bytes_part(const uint8_t* at) {
  uint32_t four;
  __builtin_memcpy(&four, at, 4);
  return (IntPart)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}
CRUMB_INLINE IntPart widen_signed_bytes_part(const int8_t* at) {
  uint32_t four;
  __builtin_memcpy(&four, at, 4);
  return (IntPart)vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
}

// Bytes of the table by index below 16.
CRUMB_INLINE CodePart lookup_part(CodePart index, const uint8_t* table) {
  return (CodePart)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)index);
}

// sum += products of pairs of 16-bit integers with one pair.
CRUMB_INLINE IntPart add_pair_products_part(IntPart sum, IntPart pairs, int32_t pair) {
  return sum + (pairs << 16 >> 16) * (pair << 16 >> 16) + (pairs >> 16) * (pair >> 16);
}

// sum += each of 4 rows' four codes times the lane's four activations.
template <int bits, int lane>
CRUMB_INLINE IntPart dot_lane(IntPart sum, CodePart codes, int8x16_t x) {
  if constexpr (bits < 8)
    return (IntPart)vdotq_laneq_s32((int32x4_t)sum, (int8x16_t)codes, x, lane);
#ifdef CRUMB_I8MM
  return (IntPart)vusdotq_laneq_s32((int32x4_t)sum, (uint8x16_t)codes, x, lane);
#else
  return (IntPart)vdotq_laneq_s32((int32x4_t)sum, (int8x16_t)(codes ^ 0x80808080u), x, lane);
#endif
}

// Four slices of one part; `sums` are used in turn.
template <int bits, int chains>
CRUMB_INLINE void dot_four(IntPart (&sums)[chains], const CodePart (&codes)[4], int8x16_t x) {
  sums[0] = dot_lane<bits, 0>(sums[0], codes[0], x);
  sums[1 % chains] = dot_lane<bits, 1>(sums[1 % chains], codes[1], x);
  sums[0] = dot_lane<bits, 2>(sums[0], codes[2], x);
  sums[1 % chains] = dot_lane<bits, 3>(sums[1 % chains], codes[3], x);
}

// chain[slice % chains] += each row's four codes of a slice times four activations, for `count`
// slices of a chunk, 4 or 8, from `first` on; x is the chunk's.
template <int bits, int chains, int first = 0, int count = 8>
CRUMB_INLINE void dot_chunk(Ints (&chain)[chains], const Codes (&slices)[8], const int8_t* x) {
  static_assert(chains <= 2);
  const int8x16_t low = vld1q_s8(x), high = vld1q_s8(x + 16);
  EACH_PART(
      IntPart sums[chains];
      for (int c = 0; c < chains; ++c) sums[c] = chain[c].part[i];
      if constexpr (first == 0)
        dot_four<bits>(sums, {slices[0].part[i], slices[1].part[i], slices[2].part[i],
                              slices[3].part[i]}, low);
      if constexpr (first + count == 8)
        dot_four<bits>(sums, {slices[4].part[i], slices[5].part[i], slices[6].part[i],
                              slices[7].part[i]}, high);
      for (int c = 0; c < chains; ++c) chain[c].part[i] = sums[c]);
}

// One slice of each tile times its lane of every token.
template <int bits, int lane, int tiles, int tokens>
CRUMB_INLINE void dot_slice(Ints (&dot)[tiles][tokens], const uint8_t* codes, int64_t strip_bytes,
                            const int8x16_t (&x)[tokens]) {
#pragma GCC unroll 2
  for (int k = 0; k < tiles; ++k) {
    const Codes slice = load_codes(codes + k * strip_bytes + 64 * lane);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t)
      EACH_PART(dot[k][t].part[i] = dot_lane<bits, lane>(dot[k][t].part[i], slice.part[i], x[t]));
  }
}

// dot[k][t] += unpacked tile k times token t over `count` times 4 or 8 slices: 16 sums for 4 tokens, 4 registers of
// codes and one of activations a token.
template <int bits, int slices = 8, int tiles, int tokens>
CRUMB_INLINE void dot_strip(Ints (&dot)[tiles][tokens], const uint8_t* codes, int64_t strip_bytes,
                            const int8_t* x, int64_t stride, int64_t count) {
  for (int64_t half = 0; half < slices / 4 * count; ++half) {
    int8x16_t by[tokens];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) by[t] = vld1q_s8(x + t * stride + 16 * half);
    const uint8_t* at = codes + 4 * 64 * half;
    dot_slice<bits, 0>(dot, at, strip_bytes, by);
    dot_slice<bits, 1>(dot, at, strip_bytes, by);
    dot_slice<bits, 2>(dot, at, strip_bytes, by);
    dot_slice<bits, 3>(dot, at, strip_bytes, by);
  }
}
