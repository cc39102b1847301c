// One token drawn from scores. In: scores that are finite or -inf, their largest one, filters, a
// number of [0, 1). Out: the place that is drawn. Equal scores: the lower index is the likelier.
// The order: temperature, top_k, top_p of what top_k left, min_p. Weights are f32, sums f64.
#pragma once

#include <cstdint>

#include "run_kernels.hpp"

namespace crumb {

struct Filters {
  double temperature;
  int64_t top_k;  // 0: all
  double top_p, min_p;
};

// `scores` and `weights` have room up to a multiple of 16 floats. What lies kFarthest temperatures
// below the best is never drawn.
constexpr float kFarthest = 80.0f;
int64_t draw(const RunKernels& kernels, const float* scores, float* weights, int64_t count,
             float best, const Filters& filters, double uniform);

}  // namespace crumb
