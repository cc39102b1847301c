// The column sweep of GPTQ within one block. In: crumb::Sweep. Out: its codes and error.
// For column j: choose the code nearest to t_j, then t_k += (w_j - chosen_j) * factor[j, k], k > j.
// Twin: kernels/gptq_sweep.py sweep_reference, bit for bit.

// The nearest code to each target on its row's grid.
inline Vec nearest_code(Vec target, Vec scale, Vec offset, bool minimum, float largest) {
  const Vec base = minimum ? offset : Vec{};
  const Vec shift = minimum ? Vec{} : offset;
  const Vec quotient = (target - base) / (scale == 0.0f ? all(1.0f) : scale);
  const Vec bounded = scale == 0.0f ? Vec{} : clip(quotient, -kRoundLimit, kRoundLimit);
  return clip(nearest(bounded) + shift, 0.0f, largest);
}

// The nearest of a table's levels to each target, and its place in the table.
inline Vec nearest_place(Vec target, Vec scale, const Levels& levels, Vec* level) {
  const Vec quotient = target / (scale == 0.0f ? all(1.0f) : scale);
  return levels.nearest(scale == 0.0f ? Vec{} : quotient, level);
}

void sweep(const Sweep& job) {
  const int64_t n = job.columns;
  Workspace space(3 * n);
  Vec *target = space.at, *weight = target + n, *error = weight + n;
  const bool minimum = job.zero == kMinimum;
  const Levels levels(job.levels, job.level_count);

  for (int64_t row = 0; row < job.rows; row += kLanes) {
    const int present = job.rows - row < kLanes ? int(job.rows - row) : kLanes;
    load_transposed(job.start, row, job.rows, n, 0, n, target);
    load_transposed(job.weights, row, job.rows, n, 0, n, weight);
    Vec scale{}, offset{};
    int64_t loaded_group = -1;

    for (int64_t j = 0; j < n; ++j) {
      Vec chosen = target[j];
      if (job.codes) {
        if (job.group[j] != loaded_group) {
          loaded_group = job.group[j];
          const int64_t at = row * job.groups + loaded_group;
          for (int lane = 0; lane < present; ++lane) {
            scale[lane] = job.scale[at + lane * job.groups];
            offset[lane] = job.offset[at + lane * job.groups];
          }
        }
        Vec code, level;
        if (job.levels) {
          code = nearest_place(chosen, scale, levels, &level);
          chosen = level * scale;
        } else {
          code = nearest_code(chosen, scale, offset, minimum, float(job.largest_code));
          chosen = minimum ? code * scale + offset : (code - offset) * scale;
        }
        for (int lane = 0; lane < present; ++lane)
          job.codes[(row + lane) * n + j] = uint8_t(int(code[lane]));
      }
      error[j] = weight[j] - chosen;
      const float* factor = job.factor + j * n;
      for (int64_t k = j + 1; k < n; ++k) target[k] += error[j] * factor[k];
    }
    for (int lane = 0; lane < present; ++lane)
      for (int64_t j = 0; j < n; ++j) job.error[(row + lane) * n + j] = error[j][lane];
  }
}
