// The search of a group's scale and offset. In: crumb::GridSearch. Out: its scale and offset.
// Every candidate is rounded, refitted in closed form, rounded again and scored by
// sum h (w - decoded)^2; the lowest score wins, the earlier candidate on a tie.
// Twin: kernels/grid_search.py grid_search_reference, bit for bit.

struct Candidate {
  Vec scale, offset;
};

struct Best {
  Vec score, scale, offset;
};

struct Grid {
  bool minimum;
  float largest;
  const Levels* levels;  // null: whole numbers
};

// Codes relative to the zero point (or to the minimum).
inline Vec level_of(Vec w, Vec inverse, Vec offset, Grid grid) {
  if (grid.levels) {
    Vec level;
    grid.levels->nearest(w * inverse, &level);
    return level;
  }
  const Vec base = grid.minimum ? offset : Vec{};
  const Vec shift = grid.minimum ? Vec{} : offset;
  const Vec quotient = clip((w - base) * inverse, -kRoundLimit, kRoundLimit);
  return clip(nearest(quotient) + shift, 0.0f, grid.largest) - shift;
}

// scale (and minimum) that minimise sum h (w - scale * level - minimum)^2 for the given rounding.
inline Candidate refit(const Vec* w, const float* h, int64_t width, Candidate from, Grid grid) {
  const Vec inverse = 1.0f / from.scale;
  Vec hl{}, hll{}, hw{}, hwl{};
  float total = 0.0f;
  for (int64_t j = 0; j < width; ++j) {
    const Vec level = level_of(w[j], inverse, from.offset, grid);
    const Vec weighted = h[j] * level;
    total += h[j];
    hll += weighted * level;
    hwl += weighted * w[j];
    if (grid.minimum) {
      hl += weighted;
      hw += h[j] * w[j];
    }
  }
  if (!grid.minimum) {
    const Vec scale = hwl / hll;
    const auto good = (hll > 0.0f) & (scale != 0.0f);
    return {good ? scale : from.scale, from.offset};
  }
  const Vec det = total * hll - hl * hl;
  const Vec scale = (total * hwl - hl * hw) / det;
  const auto good = (det > 0.0f) & (scale > 0.0f);
  return {good ? scale : from.scale, good ? (hw - scale * hl) / total : from.offset};
}

inline void consider(const Vec* w, const float* h, int64_t width, Candidate from, Grid grid,
                     Best* best) {
  const Candidate it = refit(w, h, width, from, grid);
  const Vec inverse = 1.0f / it.scale;
  const Vec add = grid.minimum ? it.offset : Vec{};
  Vec score{};
  for (int64_t j = 0; j < width; ++j) {
    const Vec miss = w[j] - (it.scale * level_of(w[j], inverse, it.offset, grid) + add);
    score += (h[j] * miss) * miss;
  }
  const auto better = score < best->score;
  best->score = better ? score : best->score;
  best->scale = better ? it.scale : best->scale;
  best->offset = better ? it.offset : best->offset;
}

// All candidates of one group: either sign of scale (fixed zero), three zero points, one minimum.
inline Best search_group(const GridSearch& job, const Levels& levels, const Vec* w, const float* h,
                         int64_t width) {
  const Grid grid = {job.zero == kMinimum, float((1 << job.bits) - 1),
                     job.levels ? &levels : nullptr};
  const float half = job.levels ? levels.farthest() : float(1 << (job.bits - 1));
  const Vec fixed = job.levels ? Vec{} : all(half);
  Vec low = grid.minimum ? w[0] : Vec{}, high = low;
  for (int64_t j = 0; j < width; ++j) {
    low = w[j] < low ? w[j] : low;
    high = w[j] > high ? w[j] : high;
  }
  const Vec span = (high - low) / grid.largest;
  const Vec reach = (-low > high ? -low : high) / half;
  const Vec point = span == 0.0f ? Vec{} : nearest(-low / span);
  Best best = {all(3.402823466e38f), Vec{}, grid.minimum ? low : Vec{}};
  if (job.zero == kFixed) best.offset = fixed;

  const int alternatives = job.zero == kFixed ? 2 : job.zero == kVariable ? 3 : 1;
  for (int alternative = 0; alternative < alternatives; ++alternative)
    for (int k = 0; k < job.shrink_count; ++k) {
      const float shrink = job.shrinks[k];
      Candidate from;
      if (job.zero == kFixed) {
        from = {(alternative == 0 ? shrink : -shrink) * reach, fixed};
      } else if (job.zero == kVariable) {
        from = {shrink * span, clip(point + float(alternative - 1), 0.0f, grid.largest)};
      } else {
        from.scale = shrink * span;
        from.offset = (low + high) * 0.5f - from.scale * grid.largest * 0.5f;
      }
      consider(w, h, width, from, grid, &best);
    }
  return best;
}

void grid_search(const GridSearch& job) {
  const int64_t groups = (job.columns + job.group_width - 1) / job.group_width;
  Workspace space(job.group_width);
  Vec* w = space.at;
  const Levels levels(job.levels, job.level_count);
  for (int64_t row = 0; row < job.rows; row += kLanes) {
    const int present = job.rows - row < kLanes ? int(job.rows - row) : kLanes;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * job.group_width;
      const int64_t end =
          begin + job.group_width < job.columns ? begin + job.group_width : job.columns;
      load_transposed(job.weights, row, job.rows, job.columns, begin, end, w);
      const Best best = search_group(job, levels, w, job.importance + begin, end - begin);
      for (int lane = 0; lane < present; ++lane) {
        job.scale[(row + lane) * groups + group] = best.scale[lane];
        job.offset[(row + lane) * groups + group] = best.offset[lane];
      }
    }
  }
}
