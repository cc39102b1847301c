// What places add to the scores of attention. In: a Tilt, where sixteen scores begin. Out: what each
// has added, by the distance of its key alone. Refuses nothing. Twins: operations/places.py.

// What a head adds to the scores of a query, whose place counts from the first score's.
struct Tilt {
  const float* slope;  // null: nothing
  float factor;
  bool rounded;
  int64_t origin, query;
  const float* distances;  // from -(farthest + 15) on; null: nothing
  int64_t farthest;
};

CRUMB_INLINE float as_bfloat(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// Of the sixteen scores from `k` on.
CRUMB_INLINE Floats tilted(const Tilt& tilt, int64_t k) {
  float lane[16];
  const float slope = *tilt.slope;
  if (tilt.rounded) {
    const float at_query = as_bfloat(slope * float(tilt.origin + tilt.query));
    const int32_t first = int32_t(tilt.origin + k);
    for (int j = 0; j < 16; ++j) lane[j] = as_bfloat(slope * float(first + j)) - at_query;
  } else {
    const int32_t first = int32_t(k - tilt.query);
    for (int j = 0; j < 16; ++j) lane[j] = slope * float(first + j);
  }
  return load_floats(lane) * all_floats(tilt.factor);
}

// What distances add to the sixteen scores from `k` on.
CRUMB_INLINE Floats distant(const Tilt& tilt, int64_t k) {
  int64_t first = k - tilt.query;
  if (first > tilt.farthest) first = tilt.farthest;
  if (first < -tilt.farthest - 15) first = -tilt.farthest - 15;
  return load_floats(tilt.distances + first + tilt.farthest + 15);
}
