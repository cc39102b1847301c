// Which way a matrix is multiplied. In: MatmulJob. Out: its rows of `out`, for few tokens by
// tile_matmul.inl or, of super-blocks, by super_matmul.inl; for many by strip_matmul.inl or
// super_strip.inl.

// All tokens of a tile, as many at a time as registers hold: work.run<tokens>(tile, token).
template <class Work>
CRUMB_INLINE void fused_tiles(const MatmulJob& job, const Work& work) {
  for (int64_t tile = job.first_tile; tile < job.last_tile; ++tile) {
    int64_t token = 0;
    if constexpr (kFusedTokens >= 8)
      for (; token + 8 <= job.tokens; token += 8) work.template run<8>(tile, token);
    for (; token + 4 <= job.tokens; token += 4) work.template run<4>(tile, token);
    for (; token + 2 <= job.tokens; token += 2) work.template run<2>(tile, token);
    for (; token < job.tokens; ++token) work.template run<1>(tile, token);
  }
}

// So few tokens use codes as fast as memory gives them. Some processors fetch those ahead by
// themselves; with more tokens a quarter is lost there unless they are asked for.
constexpr int kStreamedTokens = 2;

template <int bits, bool table>
struct FusedTiles {
  const MatmulJob& job;
  template <int tokens>
  CRUMB_INLINE void run(int64_t tile, int64_t token) const {
    if constexpr (tokens <= kStreamedTokens)
      if (kFetchesAhead) return fused_tile<bits, table, false, tokens>(job, tile, token);
    fused_tile<bits, table, true, tokens>(job, tile, token);
  }
};

template <class Kind>
struct FusedSuperTiles {
  const MatmulJob& job;
  const int32_t* sums;
  template <int tokens>
  CRUMB_INLINE void run(int64_t tile, int64_t token) const {
    const int32_t* pairs = sums + token * job.x.blocks / 2;
    if constexpr (tokens <= kStreamedTokens)
      if (kFetchesAhead)
        return fused_super_tile<Kind, tokens, false>(job, tile, token, pairs);
    fused_super_tile<Kind, tokens, true>(job, tile, token, pairs);
  }
};

// All tiles of a job, unpacked one or two at a time: work.unpack(tile, place), then
// work.run<tiles, tokens>(tile, token).
template <int tiles, class Work>
CRUMB_INLINE void strip_tokens(const MatmulJob& job, int64_t tile, const Work& work) {
  int64_t token = 0;
  if constexpr (kStripTokens == 6)
    for (; token + 6 <= job.tokens; token += 6) work.template run<tiles, 6>(tile, token);
  for (; token + 4 <= job.tokens; token += 4) work.template run<tiles, 4>(tile, token);
  for (; token < job.tokens; ++token) work.template run<tiles, 1>(tile, token);
}

template <class Work>
void strip_tiles(const MatmulJob& job, const Work& work) {
  int64_t tile = job.first_tile;
  if constexpr (kStripTiles == 2)
    for (; tile + 2 <= job.last_tile; tile += 2) {
      work.unpack(tile, 0);
      work.unpack(tile + 1, 1);
      strip_tokens<2>(job, tile, work);
    }
  for (; tile < job.last_tile; ++tile) {
    work.unpack(tile, 0);
    strip_tokens<1>(job, tile, work);
  }
}

template <int bits, bool table, int dot_bits, int kind>
struct StripTiles {
  const MatmulJob& job;
  const Strip strip;
  const int32_t zero;
  void unpack(int64_t tile, int64_t place) const {
    float* headers = strip.headers + place * strip.header_floats();
    unpack_tile<bits, table>(job.matrix, tile, strip.codes + place * strip.bytes);
    expand_headers(job.matrix, tile, headers, headers + kTileRows * strip.groups);
  }
  template <int tiles, int tokens>
  void run(int64_t tile, int64_t token) const {
    strip_block<dot_bits, kind, tiles, tokens>(job, tile, token, zero);
  }
};

template <class Kind>
struct StripSuperTiles {
  const MatmulJob& job;
  const SuperStrip strip;
  void unpack(int64_t tile, int64_t place) const {
    unpack_super_tile<Kind>(job, tile, strip.codes + place * strip.bytes,
                            strip.numbers + place * strip.of_tile);
  }
  template <int tiles, int tokens>
  void run(int64_t tile, int64_t token) const {
    super_strip_block<Kind, tiles, tokens>(job, tile, token);
  }
};

template <int bits, bool table, int dot_bits, int kind>
void strip_matmul_of(const MatmulJob& job, int32_t zero) {
  strip_tiles(job, StripTiles<bits, table, dot_bits, kind>{job, Strip(job), zero});
}

template <int bits, bool table>
void strip_matmul(const MatmulJob& job) {
  constexpr int kPlain = table ? 8 : bits, kFolded = bits < 7 ? bits + 1 : bits;
  const int32_t zero = common_zero(job.matrix, kPlain);
  switch (job.matrix.zero) {
    case kFixed: return strip_matmul_of<bits, table, kPlain, kFixed>(job, zero);
    case kMinimum: return strip_matmul_of<bits, table, kPlain, kMinimum>(job, zero);
  }
  if constexpr (bits < 8)
    strip_matmul_of<bits, table, kFolded, kFixed>(job, 1 << bits);
  else
    strip_matmul_of<bits, table, kPlain, kVariable>(job, zero);
}

template <int bits, bool table>
void tile_matmul_of(const MatmulJob& job) {
  if (job.tokens <= kMostFusedTokens)
    fused_tiles(job, FusedTiles<bits, table>{job});
  else
    strip_matmul<bits, table>(job);
}

template <class Kind>
void super_matmul_of(const MatmulJob& job) {
  if (job.tokens > kMostFusedTokens)
    return strip_tiles(job, StripSuperTiles<Kind>{job, SuperStrip(job)});
  int32_t* sums = reinterpret_cast<int32_t*>(job.scratch);
  if constexpr (has_terms<Kind>()) pair_sums(job.x, 0, job.tokens, sums);
  fused_tiles(job, FusedSuperTiles<Kind>{job, sums});
}

void super_matmul(const MatmulJob& job) {
  with_super_kind(job.matrix, [&](auto kind) { super_matmul_of<decltype(kind)>(job); });
}

void tile_matmul(const MatmulJob& job) {
  if (job.matrix.sub != kNoSub) return super_matmul(job);
  if (job.matrix.table) {
    switch (job.matrix.bits) {
      case 2: return tile_matmul_of<2, true>(job);
      case 3: return tile_matmul_of<3, true>(job);
      default: return tile_matmul_of<4, true>(job);
    }
  }
  switch (job.matrix.bits) {
    case 2: return tile_matmul_of<2, false>(job);
    case 3: return tile_matmul_of<3, false>(job);
    case 4: return tile_matmul_of<4, false>(job);
    case 5: return tile_matmul_of<5, false>(job);
    case 6: return tile_matmul_of<6, false>(job);
    default: return tile_matmul_of<8, false>(job);
  }
}
