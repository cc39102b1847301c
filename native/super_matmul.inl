// Quantized matrices of super-blocks times int8 activations. In: MatmulJob. Out: its rows of `out`.
// The header gives each of a super-block's groups a scale (and minimum) of its own, exact in f32;
// with these it is added as a group of tile_matmul.inl is. A group is a chunk or half of one.

// The zero of the super-blocks whose codes have these bits; engine_bindings.cpp lets in no other.
constexpr int super_zero(int bits, bool table) {
  return table || bits == 3 || bits == 6 ? kFixed : kMinimum;
}

// What a super-block's header says of all its groups; the minimum is one to add.
template <int zero>
CRUMB_INLINE Header read_super_header(const uint8_t* block) {
  Header header = read_header(block, zero);
  if constexpr (zero == kMinimum) header.minimum = header.minimum * all_floats(-1.0f);
  return header;
}

// The header of one group of `width` inputs; `all` is that of its super-block, which is at `block`.
template <int zero, int width>
CRUMB_INLINE Header header_of_group(const Header& all, const uint8_t* block, int64_t group) {
  constexpr bool kDigits = zero == kMinimum && width == 16;
  const uint8_t* sub = block + own_header_bytes(zero) + kTileRows * group;
  Header header = all;
  if constexpr (kDigits) {
    const Ints digits = widen_bytes(sub);
    header.scale = all.scale * to_floats(low_digit(digits));
    header.minimum = all.minimum * to_floats(shift_right<4>(digits));
  } else {
    header.scale = all.scale * to_floats(widen_signed_bytes(sub));
    if constexpr (zero == kMinimum)
      header.minimum =
          all.minimum * to_floats(widen_bytes(sub + kTileRows * (kSuperInputs / width)));
  }
  return header;
}

// The same for any matrix of super-blocks.
CRUMB_INLINE Header header_of_group(const uint8_t* block, const TileMatrix& m, int64_t group) {
  if (m.zero == kFixed) {
    const Header all = read_super_header<kFixed>(block);
    return header_of_group<kFixed, 32>(all, block, group);  // no matter how wide
  }
  const Header all = read_super_header<kMinimum>(block);
  if (m.sub == kSubDigits) return header_of_group<kMinimum, 16>(all, block, group);
  return header_of_group<kMinimum, 32>(all, block, group);
}

// One group, `count` slices of a chunk from `first` on, joins the sums of its block of some tokens.
template <int dot_bits, int kind, int raised, int first, int count, int tokens>
CRUMB_INLINE void fused_super_group(const MatmulJob& job, Floats (&block)[tokens],
                                    const Codes (&slices)[8], const int8_t* x,
                                    const int32_t* total, int32_t zero, const Header& header) {
  constexpr int kChains = tokens == 1 ? 2 : 1;
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) {
    const int32_t sum = total[t * job.x.blocks];
    Ints dot[kChains];
    dot[0] = all_ints(-zero * sum);
    if constexpr (kChains > 1) dot[1] = all_ints(0);
    dot_chunk<dot_bits, kChains, first, count>(dot, slices, x + t * job.x.stride);
    if constexpr (kChains > 1) dot[0] = dot[0] + shift_right<raised>(dot[1]);
    block[t] = join_group(block[t], dot[0], header, kind, float(sum));
  }
}

constexpr int64_t kSuperChunks = kSuperInputs / kChunkInputs;
constexpr int64_t kBlockChunks = kBlockInputs / kChunkInputs;

template <int bits, bool table, int tokens, int width>
CRUMB_INLINE void fused_super_tile(const MatmulJob& job, int64_t tile, int64_t token) {
  constexpr int kDotBits = table ? 8 : bits, kGroups = kChunkInputs / width;
  constexpr bool kRaised = kRaisedCodes && tokens == 1 && !table && raised_by(bits) > 0;
  constexpr int kUp = kRaised ? raised_by(bits) : 0, kSlicesOfGroup = width / kSliceInputs;
  constexpr int kKind = super_zero(bits, table);
  const TileMatrix& m = job.matrix;
  const int32_t zero = common_zero(m, kDotBits);
  const int8_t* x = job.x.codes + token * job.x.stride;
  const float* scale = job.x.scale + token * scale_count(job.x);
  const int32_t* total = job.x.sum + token * job.x.blocks;
  const uint8_t* at = m.tiles + tile * m.tile_bytes;
  Floats out[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) out[t] = all_floats(0.0f);

  for (int64_t first = 0; first < m.columns; first += kSuperInputs) {
    const uint8_t* super = at;
    const Header all = read_super_header<kKind>(super);
    at += header_bytes(m);
    for (int64_t begin = 0; begin < kSuperChunks; begin += kBlockChunks) {
      Floats block[tokens];
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) block[t] = all_floats(0.0f);
      for (int64_t chunk = begin; chunk < begin + kBlockChunks; ++chunk) {
        Codes slices[8];
        unpack_chunk<bits, kRaised>(at, slices);
        if constexpr (table) look_up(slices, m.table);
        prefetch_codes<bits>(at);
        fused_super_group<kDotBits, kKind, kUp, 0, kSlicesOfGroup>(
            job, block, slices, x, total, zero,
            header_of_group<kKind, width>(all, super, chunk * kGroups));
        if constexpr (kGroups == 2)
          fused_super_group<kDotBits, kKind, kUp, kSlicesOfGroup, kSlicesOfGroup>(
              job, block, slices, x, total + 1, zero,
              header_of_group<kKind, width>(all, super, chunk * kGroups + 1));
        at += chunk_bytes(bits);
        x += kChunkInputs;
        total += kGroups;
      }
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) out[t] = fma(block[t], scale[t * scale_count(job.x)], out[t]);
      ++scale;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) finish_tile(job, tile, token + t, out[t]);
}
