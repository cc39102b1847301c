// Router: the experts of each token and their shares, from f32 scores; operations/router.py says how.
// Scores that are not numbers count as the least, so that every expert chosen is one there is.
#include <cmath>

#include "../operation.hpp"

namespace crumb {
namespace {

enum Made { kAsIs, kBySum, kSoftmax, kSigmoid };

constexpr float kLeast = -3e38f;

inline float least_if_nan(float x) { return std::isnan(x) ? kLeast : x; }

Made made_named(const std::string& name) {
  for (const auto& [made, code] : {std::pair{"none", kAsIs}, {"sum", kBySum},
                                   {"softmax", kSoftmax}, {"sigmoid", kSigmoid}})
    if (name == made) return code;
  throw std::invalid_argument("router: unknown function");
}

// Index of the largest; of equal ones the first.
int64_t best_of(const float* x, int64_t count) {
  int64_t best = 0;
  for (int64_t k = 1; k < count; ++k)
    if (x[k] > x[best]) best = k;
  return best;
}

void make(Made made, float* x, int64_t count, float floor) {
  if (made == kSigmoid)
    for (int64_t k = 0; k < count; ++k) x[k] = 1.0f / (1.0f + std::exp(-std::max(x[k], -80.0f)));
  if (made == kAsIs || made == kSigmoid) return;
  if (made == kSoftmax) {
    const float most = x[best_of(x, count)];
    for (int64_t k = 0; k < count; ++k) x[k] = std::exp(x[k] - most);
    floor = 0.0f;
  }
  float total = 0.0f;
  for (int64_t k = 0; k < count; ++k) total += x[k];
  for (int64_t k = 0; k < count; ++k) x[k] /= total + floor;
}

struct Router final : Operation {
  int in, shares, chosen;
  Made scoring, finish;
  const float* bias;
  int64_t experts, used, groups, top_groups, group_best;
  float floor, factor;

  explicit Router(Maker& maker)
      : in(maker.buffer("input")), shares(maker.buffer("shares")), chosen(maker.buffer("chosen")),
        scoring(made_named(maker.of.text("scoring"))), finish(made_named(maker.of.text("finish"))),
        experts(maker.width(in)), used(maker.width(chosen)), groups(maker.of.integer("groups")),
        top_groups(maker.of.integer("top_groups")), group_best(maker.of.integer("group_best")),
        floor(maker.of.number("floor")), factor(maker.of.number("factor")) {
    bias = maker.of.floats("bias", experts, "router: bias has the wrong width", true);
    require(scoring != kBySum, "router: unknown function");
    require(maker.width(shares) == used && used <= experts, "router: widths differ");
    require(groups > 0 && experts % groups == 0 && top_groups > 0 && top_groups <= groups &&
                group_best > 0 && group_best <= experts / groups &&
                used <= top_groups * (experts / groups), "router: groups do not divide");
    const int64_t needed = (3 * experts + groups) * int64_t(sizeof(float));
    require(needed <= maker.engine.scratch_bytes(), "router: scratch too small");
    require(maker.apart(in, shares) && maker.apart(in, chosen) && maker.apart(shares, chosen),
            "router: reads what it writes");
  }

  // Experts of groups that are not among the best become kLeast. `spare`: (experts + groups).
  void keep_groups(float* worth, float* spare) const {
    const int64_t size = experts / groups;
    float* of_group = spare + experts;
    for (int64_t g = 0; g < groups; ++g) {
      float* some = spare + g * size;
      std::copy(worth + g * size, worth + (g + 1) * size, some);
      of_group[g] = 0.0f;
      for (int64_t k = 0; k < group_best; ++k) {
        const int64_t best = best_of(some, size);
        of_group[g] += some[best];
        some[best] = kLeast;
      }
      of_group[g] = least_if_nan(of_group[g]);
    }
    for (int64_t k = 0; k < top_groups; ++k) of_group[first_best(of_group, groups)] = NAN;
    for (int64_t g = 0; g < groups; ++g)
      if (!std::isnan(of_group[g])) std::fill(worth + g * size, worth + (g + 1) * size, kLeast);
  }
  // As best_of, where those that were taken are no numbers.
  static int64_t first_best(const float* x, int64_t count) {
    int64_t best = 0;
    while (std::isnan(x[best])) ++best;
    for (int64_t k = best + 1; k < count; ++k)
      if (x[k] > x[best]) best = k;
    return best;
  }

  void run(Worker& worker) const override {
    const Buffer &from = worker.buffer(in), &to = worker.buffer(shares), &at = worker.buffer(chosen);
    float* scored = reinterpret_cast<float*>(worker.scratch);
    float* worth = scored + experts;
    const Share mine = worker.share(worker.rows);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const float* x = from.data + row * from.stride;
      for (int64_t e = 0; e < experts; ++e) scored[e] = least_if_nan(x[e]);
      make(scoring, scored, experts, 0.0f);
      for (int64_t e = 0; e < experts; ++e) worth[e] = least_if_nan(bias ? scored[e] + bias[e] : scored[e]);
      pick(worth, scored, to.data + row * to.stride, at.data + row * at.stride, worth + experts);
    }
  }

  void pick(float* worth, const float* scored, float* share, float* expert, float* spare) const {
    if (groups > 1) keep_groups(worth, spare);
    for (int64_t k = 0; k < used; ++k) {
      const int64_t best = first_best(worth, experts);
      expert[k] = float(best);
      share[k] = scored[best];
      worth[best] = NAN;
    }
    make(finish, share, used, floor);
    for (int64_t k = 0; k < used; ++k) share[k] *= factor;
  }
};

const Register<Router> registered("router");

}  // namespace
}  // namespace crumb
