// Which way a matrix is multiplied. In: MatmulJob. Out: its rows of `out`, for few tokens by
// tile_matmul.inl or, of super-blocks, by super_matmul.inl; for many by strip_matmul.inl.
// `width` below is the inputs of a super-block's group, 0 where each group is a block of its own.

template <int bits, bool table, int tokens, int width>
CRUMB_INLINE void fused_tokens(const MatmulJob& job, int64_t tile, int64_t token) {
  if constexpr (width > 0)
    fused_super_tile<bits, table, tokens, width>(job, tile, token);
  else
    fused_tile<bits, table, tokens>(job, tile, token);
}

// All tokens of a tile, as many at a time as registers hold.
template <int bits, bool table, int width>
void fused_tiles(const MatmulJob& job) {
  for (int64_t tile = job.first_tile; tile < job.last_tile; ++tile) {
    int64_t token = 0;
    if constexpr (kFusedTokens >= 8)
      for (; token + 8 <= job.tokens; token += 8) fused_tokens<bits, table, 8, width>(job, tile, token);
    for (; token + 4 <= job.tokens; token += 4) fused_tokens<bits, table, 4, width>(job, tile, token);
    for (; token + 2 <= job.tokens; token += 2) fused_tokens<bits, table, 2, width>(job, tile, token);
    for (; token < job.tokens; ++token) fused_tokens<bits, table, 1, width>(job, tile, token);
  }
}

template <int dot_bits, int kind, int tiles, int width>
void strip_tokens(const MatmulJob& job, int64_t tile, int32_t zero) {
  int64_t token = 0;
  if constexpr (kStripTokens == 6) {
    for (; token + 6 <= job.tokens; token += 6)
      strip_block<dot_bits, kind, tiles, 6, width>(job, tile, token, zero);
  }
  for (; token + 4 <= job.tokens; token += 4)
    strip_block<dot_bits, kind, tiles, 4, width>(job, tile, token, zero);
  for (; token < job.tokens; ++token)
    strip_block<dot_bits, kind, tiles, 1, width>(job, tile, token, zero);
}

template <int bits, bool table, int dot_bits, int kind, int width>
void strip_tiles(const MatmulJob& job, int32_t zero) {
  const Strip strip(job);
  const auto unpack = [&](int64_t tile, int64_t k) {
    float* headers = strip.headers + k * strip.header_floats();
    unpack_tile<bits, table>(job.matrix, tile, strip.codes + k * strip.bytes);
    expand_headers(job.matrix, tile, headers, headers + kTileRows * strip.groups);
  };
  int64_t tile = job.first_tile;
  if constexpr (kStripTiles == 2)
    for (; tile + 2 <= job.last_tile; tile += 2) {
      unpack(tile, 0);
      unpack(tile + 1, 1);
      strip_tokens<dot_bits, kind, 2, width>(job, tile, zero);
    }
  for (; tile < job.last_tile; ++tile) {
    unpack(tile, 0);
    strip_tokens<dot_bits, kind, 1, width>(job, tile, zero);
  }
}

template <int bits, bool table, int width>
void strip_matmul(const MatmulJob& job) {
  constexpr int kPlain = table ? 8 : bits, kFolded = bits < 7 ? bits + 1 : bits;
  const int32_t zero = common_zero(job.matrix, kPlain);
  switch (job.matrix.zero) {
    case kFixed: return strip_tiles<bits, table, kPlain, kFixed, width>(job, zero);
    case kMinimum: return strip_tiles<bits, table, kPlain, kMinimum, width>(job, zero);
  }
  if constexpr (width > 0)
    return;  // super-blocks have no variable zero
  else if constexpr (bits < 8)
    strip_tiles<bits, table, kFolded, kFixed, 0>(job, 1 << bits);
  else
    strip_tiles<bits, table, kPlain, kVariable, 0>(job, zero);
}

template <int bits, bool table, int width = 0>
void tile_matmul_of(const MatmulJob& job) {
  if (job.tokens <= kMostFusedTokens)
    fused_tiles<bits, table, width>(job);
  else
    strip_matmul<bits, table, width>(job);
}

void super_matmul(const MatmulJob& job) {
  if (job.matrix.table) return tile_matmul_of<4, true, 32>(job);
  switch (job.matrix.bits) {
    case 2: return tile_matmul_of<2, false, 16>(job);
    case 3: return tile_matmul_of<3, false, 16>(job);
    case 4: return tile_matmul_of<4, false, 32>(job);
    case 5: return tile_matmul_of<5, false, 32>(job);
    default: return tile_matmul_of<6, false, 16>(job);
  }
}

void tile_matmul(const MatmulJob& job) {
  if (job.matrix.sub != kNoSub) return super_matmul(job);
  if (job.matrix.table) return tile_matmul_of<4, true>(job);
  switch (job.matrix.bits) {
    case 2: return tile_matmul_of<2, false>(job);
    case 3: return tile_matmul_of<3, false>(job);
    case 4: return tile_matmul_of<4, false>(job);
    case 5: return tile_matmul_of<5, false>(job);
    case 6: return tile_matmul_of<6, false>(job);
    default: return tile_matmul_of<8, false>(job);
  }
}
