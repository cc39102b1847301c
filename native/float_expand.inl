// Weights of matrices decoded to f32, sixteen rows a tile, an input a vector.
// In: TileMatrix or FloatMatrix, a tile, a range of inputs. Out: (inputs, 16) floats.
// Decoded weights are bit for bit those of formats/grid.py; rows and inputs that are not there
// are 0 in matrices of floats.

template <int bits, bool table>
void expand_tile(const TileMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  const uint8_t* base = m.tiles + tile * m.tile_bytes;
  const int64_t width = block_width(m);
  for (int64_t k = first; k < first + inputs; k += kChunkInputs) {
    const int64_t block = k / width, inside = k - block * width;
    const uint8_t* at = base + block_offset(m, block);
    const Header own = read_header(at, m.zero);
    Header half[2] = {own, own};  // of the chunk's inputs
    if (m.sub != kNoSub) {
      half[0] = header_of_group(at, m, inside / m.group_width);
      half[1] = header_of_group(at, m, (inside + kChunkInputs / 2) / m.group_width);
    }
    const Floats zero = m.zero == kVariable ? to_floats(own.zero_point)
                                            : all_floats(float(common_zero(m, table ? 0 : bits) +
                                                               (bits == 8 ? kUnsignedByteZero : 0)));
    Codes slices[8];
    unpack_chunk<bits>(at + header_bytes(m, m.columns - block * width) +
                           chunk_bytes(bits) * (inside / kChunkInputs),
                       slices);
    if constexpr (table) look_up(slices, m.table);
    float* out = to + (k - first) * kTileRows;
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) {
      const Header& header = half[s / 4];
      const Floats level[4] = {to_floats(byte_of<0>(slices[s])), to_floats(byte_of<1>(slices[s])),
                               to_floats(byte_of<2>(slices[s])), to_floats(byte_of<3>(slices[s]))};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        store_floats(out + (4 * s + j) * kTileRows,
                     m.zero == kMinimum ? level[j] * header.scale + header.minimum
                                        : (level[j] - zero) * header.scale);
    }
  }
}

void expand_codes(const TileMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  if (m.table) {
    switch (m.bits) {
      case 2: return expand_tile<2, true>(m, tile, first, inputs, to);
      case 3: return expand_tile<3, true>(m, tile, first, inputs, to);
      default: return expand_tile<4, true>(m, tile, first, inputs, to);
    }
  }
  switch (m.bits) {
    case 2: return expand_tile<2, false>(m, tile, first, inputs, to);
    case 3: return expand_tile<3, false>(m, tile, first, inputs, to);
    case 4: return expand_tile<4, false>(m, tile, first, inputs, to);
    case 5: return expand_tile<5, false>(m, tile, first, inputs, to);
    case 6: return expand_tile<6, false>(m, tile, first, inputs, to);
    default: return expand_tile<8, false>(m, tile, first, inputs, to);
  }
}

// The numbers of a vector's lanes, for shuffles.
template <int... lane>
struct LaneList {};
template <int count, int... lane>
struct LanesUpTo : LanesUpTo<count - 1, count - 1, lane...> {};
template <int... lane>
struct LanesUpTo<0, lane...> {
  using List = LaneList<lane...>;
};

// Exchanges between two vectors the lanes whose number has the bit `step`.
template <int step, int... lane>
CRUMB_INLINE void exchange(FloatPart& a, FloatPart& b, LaneList<lane...>) {
  const FloatPart low =
      __builtin_shufflevector(a, b, (lane & step ? kPartLanes + (lane ^ step) : lane)...);
  b = __builtin_shufflevector(a, b, (lane & step ? kPartLanes + lane : lane ^ step)...);
  a = low;
}
// Lanes 0 and 1 of each four of two vectors by turns, in `a`; lanes 2 and 3 in `b`.
template <int... lane>
CRUMB_INLINE void interleave(FloatPart& a, FloatPart& b, LaneList<lane...>) {
  const FloatPart low = __builtin_shufflevector(
      a, b, (lane % 2 * kPartLanes + lane / 4 * 4 + lane % 4 / 2)...);
  b = __builtin_shufflevector(a, b, (lane % 2 * kPartLanes + lane / 4 * 4 + lane % 4 / 2 + 2)...);
  a = low;
}
// As many rows as a vector has lanes become columns. Each shuffle of the first two rounds is one
// instruction of every set.
CRUMB_INLINE void transpose(FloatPart (&x)[kPartLanes]) {
  constexpr LanesUpTo<kPartLanes>::List kEach;
#pragma GCC unroll 4
  for (int k = 0; k < kPartLanes; k += 4) {
    interleave(x[k], x[k + 1], kEach);
    interleave(x[k + 2], x[k + 3], kEach);
    exchange<2>(x[k], x[k + 2], kEach);
    exchange<2>(x[k + 1], x[k + 3], kEach);
    const FloatPart second = x[k + 2];
    x[k + 2] = x[k + 1];
    x[k + 1] = second;
  }
  if constexpr (kPartLanes >= 8)
#pragma GCC unroll 16
    for (int k = 0; k < kPartLanes; ++k)
      if (!(k & 4)) exchange<4>(x[k], x[k + 4], kEach);
  if constexpr (kPartLanes >= 16)
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) exchange<8>(x[k], x[k + 8], kEach);
}

template <int kind>
CRUMB_INLINE FloatPart load_kind(const uint8_t* at) {
  if constexpr (kind == kFloat16) return widen_halves(reinterpret_cast<const uint16_t*>(at));
  if constexpr (kind == kBfloat16)
    return same_bits<FloatPart>(__builtin_convertvector(load_part<HalfPart>(at), CodePart) << 16);
  return load_part<FloatPart>(at);
}

// Weights from `at` on, of which `count` are there.
template <int kind>
CRUMB_INLINE FloatPart load_weights(const uint8_t* at, int64_t count) {
  constexpr int64_t kBytes = kind == kFloat32 ? 4 : 2;
  if (count >= kPartLanes) return load_kind<kind>(at);
  uint8_t there[kVectorBytes] = {};
  if (count > 0) __builtin_memcpy(there, at, count * kBytes);
  return load_kind<kind>(there);
}

template <int kind>
void expand_rows(const FloatMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  constexpr int64_t kBytes = kind == kFloat32 ? 4 : 2;
  for (int lane = 0; lane < kTileRows; lane += kPartLanes) {
    const int64_t row = tile * kTileRows + lane;
    for (int64_t k = 0; k < inputs; k += kPartLanes) {
      FloatPart part[kPartLanes];
      const uint8_t* at = m.weights + (row * m.columns + first + k) * kBytes;
      if (row + kPartLanes <= m.rows && first + k + kPartLanes <= m.columns)
#pragma GCC unroll 16
        for (int r = 0; r < kPartLanes; ++r)
          part[r] = load_kind<kind>(at + r * m.columns * kBytes);
      else
        for (int r = 0; r < kPartLanes; ++r)
          part[r] = load_weights<kind>(at + r * m.columns * kBytes,
                                       row + r < m.rows ? m.columns - first - k : 0);
      transpose(part);
#pragma GCC unroll 16
      for (int j = 0; j < kPartLanes; ++j)
        __builtin_memcpy(to + (k + j) * kTileRows + lane, &part[j], kVectorBytes);
    }
  }
}

template <int kind>
void expand_turned(const FloatMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  constexpr int64_t kBytes = kind == kFloat32 ? 4 : 2;
  const int64_t row = tile * kTileRows;
  for (int64_t k = 0; k < inputs; ++k) {
    const uint8_t* at = m.weights + ((first + k) * m.rows + row) * kBytes;
    EACH_PART(const FloatPart part =
                  load_weights<kind>(at + i * kPartLanes * kBytes, m.rows - row - i * kPartLanes);
              __builtin_memcpy(to + k * kTileRows + i * kPartLanes, &part, kVectorBytes));
  }
}

template <int kind>
void expand_kind(const FloatMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  if (m.turned) expand_turned<kind>(m, tile, first, inputs, to);
  else expand_rows<kind>(m, tile, first, inputs, to);
}

void expand_floats(const FloatMatrix& m, int64_t tile, int64_t first, int64_t inputs, float* to) {
  switch (m.kind) {
    case kFloat16: return expand_kind<kFloat16>(m, tile, first, inputs, to);
    case kBfloat16: return expand_kind<kBfloat16>(m, tile, first, inputs, to);
    default: return expand_kind<kFloat32>(m, tile, first, inputs, to);
  }
}
