// Arithmetic on as many rows as a vector has lanes. Included inside an anonymous namespace by each
// instruction set, which defines kVectorBytes first. Vec is the compiler's portable vector type.

typedef float Vec __attribute__((vector_size(kVectorBytes)));
constexpr int kLanes = kVectorBytes / 4;

inline Vec all(float x) { return x - Vec{}; }

inline Vec clip(Vec x, float low, float high) {
  x = x < low ? all(low) : x;
  return x > high ? all(high) : x;
}

// Nearest integer, ties to even, for |x| <= kRoundLimit: as numpy.rint.
inline Vec nearest(Vec x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  return (x + magic) - magic;
}

// The levels that a table's codes stand for, ascending, and half-way points between them.
struct Levels {
  Levels(const float* levels, int64_t count) : count(count) {
    for (int64_t k = 0; k < count; ++k) {
      level[k] = levels[k];
      if (k > 0) half_way[k] = (levels[k - 1] + levels[k]) * 0.5f;
    }
  }
  // The place of the level nearest to x, of two the lower; NaN goes to the first.
  Vec nearest(Vec x, Vec* at) const {
    Vec place{}, value = all(level[0]);
    for (int64_t k = 1; k < count; ++k) {
      const auto above = x > half_way[k];
      place = above ? all(float(k)) : place;
      value = above ? all(level[k]) : value;
    }
    *at = value;
    return place;
  }
  // How far from 0 the farthest is.
  float farthest() const {
    const float low = -level[0], high = level[count - 1];
    return low > high ? low : high;
  }
  float level[kMostLevels], half_way[kMostLevels];
  int64_t count;
};

// Columns [begin, end) of up to kLanes rows, one row a lane; absent rows are zero.
inline void load_transposed(const float* matrix, int64_t row, int64_t rows, int64_t columns,
                            int64_t begin, int64_t end, Vec* out) {
  for (int64_t j = begin; j < end; ++j) {
    Vec column{};
    for (int lane = 0; lane < kLanes; ++lane)
      if (row + lane < rows) column[lane] = matrix[(row + lane) * columns + j];
    out[j - begin] = column;
  }
}

// Vectors on the heap, aligned for any instruction set, freed at the end of the scope.
struct Workspace {
  explicit Workspace(int64_t count)
      : at(static_cast<Vec*>(::operator new(count * sizeof(Vec), std::align_val_t(64)))) {}
  ~Workspace() { ::operator delete(at, std::align_val_t(64)); }
  Workspace(const Workspace&) = delete;
  Vec* at;
};
