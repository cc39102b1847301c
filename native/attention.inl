// Attention over a paged cache. In: AttentionJob, pages filled by store_cache. Out: rows of `out`.
// For each query and head: scores add the head's features in order; the largest, the sum by lane of
// the position and the mixture of values in order of positions do not depend on the queries beside
// it, on the pages, or on how the prompt was cut. Refuses nothing. Twin: operations/attention.py.

template <int kind>
CRUMB_INLINE Floats load_cached(const uint8_t* at, int64_t index) {
  if constexpr (kind == kFloat32) return load_floats(reinterpret_cast<const float*>(at) + index);
  if constexpr (kind == kFloat16) return load_halves(at + 2 * index);
  return load_signed_bytes(reinterpret_cast<const int8_t*>(at) + index);
}

constexpr float kMostHalf = 65504.0f;

// Sixteen numbers of one position into the cache, `apart` elements from each other.
CRUMB_INLINE void store_cached(uint8_t* at, int64_t index, int64_t apart, int64_t count, Floats x,
                               int kind, float inverse) {
  float exact[16];
  uint16_t half[16];
  int8_t byte[16];
  if (kind == kFloat32) {
    store_floats(exact, x);
#pragma GCC unroll 8
    for (int k = 0; k < count; ++k) reinterpret_cast<float*>(at)[index + k * apart] = exact[k];
  } else if (kind == kFloat16) {
    store_halves(half, min(max(x, all_floats(-kMostHalf)), all_floats(kMostHalf)));
#pragma GCC unroll 8
    for (int k = 0; k < count; ++k) reinterpret_cast<uint16_t*>(at)[index + k * apart] = half[k];
  } else {
    const Floats q = nearest_whole(x * all_floats(inverse));
    store_signed_bytes(byte, max(min(q, all_floats(127.0f)), all_floats(-127.0f)));
#pragma GCC unroll 8
    for (int k = 0; k < count; ++k) reinterpret_cast<int8_t*>(at)[index + k * apart] = byte[k];
  }
}

// Where a head's parts lie in its share of a page.
struct HeadPlaces {
  int64_t values, scales;
  HeadPlaces(int64_t head_dim, int kind, int64_t value_dim) {
    const int64_t element = kind == kFloat32 ? 4 : kind == kInt8 ? 1 : 2;
    values = head_dim * kPageTokens * element;
    scales = cache_head_bytes(head_dim, kind, value_dim) - 2 * kPageTokens * 4;  // int8 only
  }
};

// One head's numbers of one position; returns the int8 scale.
CRUMB_INLINE float store_head(uint8_t* at, const float* x, int64_t first, int64_t apart,
                              int64_t head_dim, int kind) {
  float scale = 0.0f, inverse = 0.0f;
  if (kind == kInt8) {
    Floats most = all_floats(0.0f), strange = all_floats(0.0f);
    for (int64_t d = 0; d < head_dim; d += 16) {
      const Floats numbers = load_first(x + d, head_dim - d);
      most = max(absolute(numbers), most);
      strange = strange + (numbers - numbers);  // NaN for what is not finite
    }
    scale = largest(most) / 127.0f + sum(strange);
    if (scale > kLeastScale) inverse = 1.0f / scale;
    else scale = sum(strange);
  }
  for (int64_t d = 0; d < head_dim; d += 16) {
    const int64_t count = head_dim - d < 16 ? head_dim - d : 16;
    store_cached(at, first + d * apart, apart, count, load_first(x + d, count), kind, inverse);
  }
  return scale;
}

void store_cache(const CacheStoreJob& job) {
  const int64_t value_dim = job.value_dim < 0 ? job.head_dim : job.value_dim;
  const HeadPlaces places(job.head_dim, job.cache.kind, value_dim);
  const int64_t padded = padded_to(value_dim, 16);
  int64_t item = 0;
  for (int64_t s = 0; s < job.segment_count; ++s) {
    const Segment& segment = job.segments[s];
    for (int64_t row = 0; row < segment.rows; ++row) {
      const int64_t position = segment.past + row, slot = position % kPageTokens;
      for (int64_t head = 0; head < job.heads; ++head) {
        if (item++ % job.threads != job.thread) continue;
        uint8_t* page = job.cache.pool +
                        segment.pages[position / kPageTokens] * job.cache.page_bytes +
                        head * job.cache.head_bytes;
        const int64_t at = segment.first_row + row;
        const float* key = job.key + at * job.key_stride + head * job.head_dim;
        const float* value = job.value + at * job.value_stride + head * value_dim;
        const int kind = job.cache.kind;
        const float a = store_head(page, key, slot, kPageTokens, job.head_dim, kind);
        const float b =
            store_head(page + places.values, value, slot * padded, 1, value_dim, kind);
        if (kind != kInt8) continue;
        float* scales = reinterpret_cast<float*>(page + places.scales);
        scales[slot] = a;
        scales[kPageTokens + slot] = b;
      }
    }
  }
}

// Some queries of one key-value head of one segment, neighbours in (row, head of the group).
struct Queries {
  const AttentionJob& job;
  const Segment& segment;
  int64_t head;   // key-value head
  int64_t first;  // query: row * group + head of the group
  int64_t value_dim() const { return job.value_dim < 0 ? job.head_dim : job.value_dim; }
  HeadPlaces places(int kind) const { return {job.head_dim, kind, job.latent ? 0 : value_dim()}; }
  int64_t group() const { return job.heads / job.key_value_heads; }
  int64_t row(int64_t q) const { return (first + q) / group(); }
  int64_t query_head(int64_t q) const { return head * group() + (first + q) % group(); }
  int64_t end(int64_t q) const {  // keys up to here are seen
    return job.causal ? segment.past + row(q) + 1 : segment.past + segment.rows;
  }
  int64_t begin(int64_t q) const {
    const int64_t at = place(q), from = job.window ? at + 1 - job.window : 0;
    const int64_t cut = job.chunk ? at - at % job.chunk : 0;
    return from > cut ? from : cut;
  }
  int64_t place(int64_t q) const { return segment.past + row(q); }
  float scale(int64_t q) const {
    if (job.rate == 0.0f) return job.scale;
    const double spans = __builtin_floor(double(place(q) + job.first) / double(job.span));
    return job.scale * float(1.0 + double(job.rate) * __builtin_log1p(spans));
  }
  const uint8_t* page(int64_t index) const {
    return job.cache.pool + segment.pages[index] * job.cache.page_bytes +
           head * job.cache.head_bytes;
  }
};

// Scores of the queries with all positions of some pages, (queries, stride). A query's feature is
// broadcast once for all these pages: loads, not products, would be the limit otherwise.
template <int kind, int count, int pages>
CRUMB_INLINE void score_some(const Queries& of, const float* query, int64_t query_stride,
                             int64_t first_page, float* scores, int64_t stride) {
  const HeadPlaces places = of.places(kind);
  const uint8_t* page[pages];
  Floats score[pages][count];
#pragma GCC unroll 2
  for (int p = 0; p < pages; ++p) {
    page[p] = of.page(first_page + p);
#pragma GCC unroll 8
    for (int q = 0; q < count; ++q) score[p][q] = all_floats(0.0f);
  }
  for (int64_t d = 0; d < of.job.head_dim; ++d) {
    Floats key[pages];
#pragma GCC unroll 2
    for (int p = 0; p < pages; ++p) key[p] = load_cached<kind>(page[p], d * kPageTokens);
#pragma GCC unroll 8
    for (int q = 0; q < count; ++q) {
      const Floats feature = all_floats(query[q * query_stride + d]);
#pragma GCC unroll 2
      for (int p = 0; p < pages; ++p) score[p][q] = fma(key[p], feature, score[p][q]);
    }
  }
#pragma GCC unroll 2
  for (int p = 0; p < pages; ++p)
#pragma GCC unroll 8
    for (int q = 0; q < count; ++q) {
      if constexpr (kind == kInt8)
        score[p][q] =
            score[p][q] * load_floats(reinterpret_cast<const float*>(page[p] + places.scales));
      store_floats(scores + q * stride + p * kPageTokens, score[p][q]);
    }
}

// Decoding reads each page once, and pages lie far from each other: the part of a later page that
// comes to be read is asked for ahead. Many rows would find it in the cache.
constexpr int64_t kPagesAhead = 4, kFewRows = 4;
CRUMB_INLINE void prefetch_page(const Queries& of, int64_t page, int64_t last_page, int64_t first_byte,
                                int64_t end_byte) {
  if (of.segment.rows > kFewRows || page >= last_page) return;
  const uint8_t* at = of.page(page);
  for (int64_t byte = first_byte; byte < end_byte; byte += 64) __builtin_prefetch(at + byte);
}

template <int kind, int count>
CRUMB_INLINE void score_pages(const Queries& of, const float* query, int64_t query_stride,
                              int64_t first_page, int64_t last_page, float* scores,
                              int64_t stride) {
  const int64_t keys = of.places(kind).values;
  int64_t page = first_page;
  for (; page + kScoredPages <= last_page; page += kScoredPages) {
    for (int p = 0; p < kScoredPages; ++p)
      prefetch_page(of, page + kPagesAhead + p, last_page, 0, keys);
    score_some<kind, count, kScoredPages>(of, query, query_stride, page, scores, stride);
    scores += kScoredPages * kPageTokens;
  }
  for (; page < last_page; ++page, scores += kPageTokens)
    score_some<kind, count, 1>(of, query, query_stride, page, scores, stride);
}

// Scores become weights, 0 where a position is not seen; returns one over their sum, to which the
// score `sink` adds where it is not null.
float soften(float* scores, int64_t begin, int64_t end, int64_t count, float cap,
             const float* sink, const Tilt& tilt) {
  for (int64_t k = 0; cap > 0.0f && k < count; k += 16) {
    const Floats x = load_floats(scores + k);
    store_floats(scores + k, all_floats(cap) * hyperbolic_tangent(x / all_floats(cap)));
  }
  for (int64_t k = 0; k < begin; ++k) scores[k] = -3e38f;
  for (int64_t k = end; k < count; ++k) scores[k] = -3e38f;
  Floats most = all_floats(-3e38f);
  for (int64_t k = 0; k < count; k += 16) {
    Floats x = load_floats(scores + k);
    if (tilt.slope) store_floats(scores + k, x = x + tilted(tilt, k));
    if (tilt.distances) store_floats(scores + k, x = x + distant(tilt, k));
    most = max(x, most);
  }
  const float highest = sink && *sink > largest(most) ? *sink : largest(most);
  const Floats top = all_floats(highest);
  Floats total = all_floats(0.0f);
  for (int64_t k = 0; k < count; k += 16) {
    Floats weight = exponential(load_floats(scores + k) - top);
    if (k < begin || k + 16 > end) {
      float lane[16];
      store_floats(lane, weight);
      for (int64_t j = 0; j < 16; ++j)
        if (k + j < begin || k + j >= end) lane[j] = 0.0f;
      weight = load_floats(lane);
    }
    total = total + weight;
    store_floats(scores + k, weight);
  }
  float lane[16];
  if (sink) store_floats(lane, exponential(all_floats(*sink - highest)));
  return 1.0f / (sink ? sum(total) + lane[0] : sum(total));
}

// Sixteen features of each position of a page, which the keys hold position by position.
template <int kind>
CRUMB_INLINE void turn_keys(const uint8_t* page, int64_t feature, int64_t features,
                            float (&values)[16][16]) {
  float columns[16][16];
  for (int64_t k = 0; k < 16; ++k)
    store_floats(columns[k], feature + k < features
                                 ? load_cached<kind>(page, (feature + k) * kPageTokens)
                                 : all_floats(0.0f));
  for (int k = 0; k < 16; ++k)
    for (int slot = 0; slot < 16; ++slot) values[slot][k] = columns[k][slot];
}

// The values of all positions mixed by the weights, `vectors` times 16 features from `feature`.
template <int kind, int count, int vectors>
CRUMB_INLINE void mix_pages(const Queries& of, int64_t feature, int64_t first_page,
                            int64_t positions, const float* weights, int64_t stride,
                            const float* inverse) {
  const HeadPlaces places = of.places(kind);
  const int64_t padded = padded_to(of.value_dim(), 16);
  const int64_t last_page = first_page + (positions + kPageTokens - 1) / kPageTokens;
  Floats mixed[count][vectors];
#pragma GCC unroll 8
  for (int q = 0; q < count; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) mixed[q][v] = all_floats(0.0f);
  for (int64_t begin = 0; begin < positions; begin += kPageTokens) {
    const uint8_t* page = of.page(first_page + begin / kPageTokens);
    const float* scales = reinterpret_cast<const float*>(page + places.scales) +
                          (of.job.latent ? 0 : kPageTokens);
    alignas(64) [[maybe_unused]] float turned[vectors][16][16];
    if (of.job.latent)
      for (int v = 0; v < vectors; ++v)
        turn_keys<kind>(page, feature + 16 * v, of.value_dim(), turned[v]);
    prefetch_page(of, first_page + begin / kPageTokens + kPagesAhead, last_page, places.values,
                  of.job.cache.head_bytes);
    const int64_t left = positions - begin, slots = left < kPageTokens ? left : kPageTokens;
    for (int64_t slot = 0; slot < slots; ++slot) {
      [[maybe_unused]] float scaled[count];
      if constexpr (kind == kInt8)
#pragma GCC unroll 8
        for (int q = 0; q < count; ++q)
          scaled[q] = weights[q * stride + begin + slot] * scales[slot];
      // Weights are broadcast from memory: an array of vectors would live on the stack.
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Floats value =
            of.job.latent ? load_floats(turned[v][slot])
                          : load_cached<kind>(page + places.values, slot * padded + feature + 16 * v);
#pragma GCC unroll 8
        for (int q = 0; q < count; ++q)
          mixed[q][v] = fma(value, kind == kInt8 ? scaled[q] : weights[q * stride + begin + slot],
                            mixed[q][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < count; ++q) {
    float* out = of.job.out + (of.segment.first_row + of.row(q)) * of.job.out_stride +
                 of.query_head(q) * of.value_dim();
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const int64_t from = feature + 16 * v;
      float lane[16];
      store_floats(lane, mixed[q][v] * all_floats(inverse[q]));
      for (int64_t k = 0; k < 16 && from + k < of.value_dim(); ++k) out[from + k] = lane[k];
    }
  }
}

template <int kind, int count>
void attend(const Queries& of) {
  const AttentionJob& job = of.job;
  const int64_t first_page = of.begin(0) / kPageTokens, origin = first_page * kPageTokens;
  const int64_t end = of.end(count - 1), positions = end - origin;
  const int64_t stride = padded_to(positions, kPageTokens) + 16;
  float* scores = job.scratch;
  float* query = scores + kScoredQueries * stride;
#pragma GCC unroll 8
  for (int q = 0; q < count; ++q) {
    const float* x = job.query + (of.segment.first_row + of.row(q)) * job.query_stride +
                     of.query_head(q) * job.head_dim;
    const float scale = of.scale(q);
    for (int64_t d = 0; d < job.head_dim; ++d) query[q * job.head_dim + d] = x[d] * scale;
  }
  score_pages<kind, count>(of, query, job.head_dim, first_page,
                           (end + kPageTokens - 1) / kPageTokens, scores, stride);
  float inverse[count];
#pragma GCC unroll 8
  for (int q = 0; q < count; ++q)
    inverse[q] = soften(scores + q * stride, of.begin(q) - origin, of.end(q) - origin,
                        padded_to(positions, kPageTokens), job.soft_cap,
                        job.sinks ? job.sinks + of.query_head(q) : nullptr,
                        {job.slopes ? job.slopes + of.query_head(q) : nullptr, job.slope_factor,
                         job.rounded, origin, of.place(q) - origin,
                         job.distances ? job.distances + of.query_head(q) *
                                                             distances_width(job.farthest)
                                       : nullptr,
                         job.farthest});
  const int64_t padded = padded_to(of.value_dim(), 16);
  constexpr int kMixed = count < kMixedQueries ? count : kMixedQueries;
  constexpr int kVectors = kMixed > 4 ? 2 : 4;  // at most 16 sums
  for (int q = 0; q < count; q += kMixed) {
    const Queries some{job, of.segment, of.head, of.first + q};
    int64_t feature = 0;
    for (; feature + 16 * kVectors <= padded; feature += 16 * kVectors)
      mix_pages<kind, kMixed, kVectors>(some, feature, first_page, positions, scores + q * stride,
                                        stride, inverse + q);
    for (; feature < padded; feature += 16)
      mix_pages<kind, kMixed, 1>(some, feature, first_page, positions, scores + q * stride, stride,
                                 inverse + q);
  }
}

template <int kind>
void attention_of(const AttentionJob& job) {
  const int64_t group = job.heads / job.key_value_heads;
  int64_t item = 0;
  for (int64_t s = 0; s < job.segment_count; ++s) {
    const int64_t queries = job.segments[s].rows * group;
    for (int64_t first = 0; first < queries; first += kScoredQueries)
      for (int64_t head = 0; head < job.key_value_heads; ++head) {
        if (item++ % job.threads != job.thread) continue;
        int64_t q = first;
        const int64_t last = first + kScoredQueries < queries ? first + kScoredQueries : queries;
        for (; q + 8 <= last; q += 8) attend<kind, 8>({job, job.segments[s], head, q});
        for (; q + 4 <= last; q += 4) attend<kind, 4>({job, job.segments[s], head, q});
        for (; q < last; ++q) attend<kind, 1>({job, job.segments[s], head, q});
      }
  }
}

void attention(const AttentionJob& job) {
  if (job.cache.kind == kFloat32) return attention_of<kFloat32>(job);
  if (job.cache.kind == kFloat16) return attention_of<kFloat16>(job);
  return attention_of<kInt8>(job);
}
