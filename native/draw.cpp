// A draw in a few passes over the scores: weights; sums of buckets of like scores, which say in
// which bucket a filter ends; those up to there. Of them only that bucket is sorted.
#include "draw.hpp"

#include <algorithm>
#include <array>
#include <vector>

namespace crumb {
namespace {

constexpr int kBuckets = 640, kNearBuckets = 96;
constexpr float kOfOne = kBuckets / kFarthest;  // buckets of one temperature: a power of two
constexpr double kFastest = 1e30;                      // 1 / the smallest temperature
constexpr int64_t kBlock = 64;

class Draw {
 public:
  Draw(const float* scores, const float* weights, int64_t count, float best, float rate)
      : scores_(scores), weights_(weights), count_(count), best_(best), rate_(rate) {}

  // The places that the filters leave, ascending. At least one is left: the best.
  std::vector<int64_t> left(const Filters& filters) {
    const bool has_most = filters.top_k > 0 && filters.top_k < count_, has_share = filters.top_p < 1.0;
    for (int buckets : {kNearBuckets, kBuckets}) {  // the far ones are many, and seldom asked for
      if (!has_most && !has_share) buckets = kBuckets;
      fill_buckets(buckets);
      if (has_most && !end_after(filters.top_k) && buckets < kBuckets) continue;
      if (!has_share || end_with_share(filters.top_p)) break;
    }
    std::vector<int64_t> places;
    for (int64_t i : near_)
      if (weights_[i] >= filters.min_p && is_left(i)) places.push_back(i);
    return places;
  }

  // One of these.
  int64_t place(const std::vector<int64_t>& places, double uniform) const {
    double total = 0.0, running = 0.0;
    for (int64_t i : places) total += weights_[i];
    for (int64_t i : places) {
      running += weights_[i];
      if (running > uniform * total) return i;
    }
    return places.back();
  }

  // One of all.
  int64_t place(double uniform) const {
    const std::vector<double> blocks = block_sums();
    double total = 0.0, running = 0.0;
    for (double sum : blocks) total += sum;
    const double aim = uniform * total;
    size_t block = 0;
    while (running + blocks[block] <= aim && block + 1 < blocks.size()) running += blocks[block++];
    int64_t last = 0;  // roundings may put the aim just behind the last one
    for (int64_t i = int64_t(block) * kBlock; i < count_; ++i) {
      if (!(distance(i) < kFarthest)) continue;
      last = i;
      running += weights_[i];
      if (running > aim) break;
    }
    return last;
  }

 private:
  float distance(int64_t i) const { return (best_ - scores_[i]) * rate_; }

  // Whether it is not behind the last that is left.
  bool is_left(int64_t i) const {
    return scores_[i] > score_ || (scores_[i] == score_ && i <= index_);
  }

  // Of the scores in the first buckets; nothing is left out any more.
  void fill_buckets(int buckets) {
    filled_ = buckets;
    end_ = kBuckets;
    score_ = -__builtin_inff();
    sums_.fill(0.0);
    counts_.fill(0);
    const float limit = float(buckets) / kOfOne;
    near_.clear();
    for (int64_t i = 0; i < count_; ++i)
      if (distance(i) < limit) near_.push_back(i);
    for (int64_t i : near_) {
      const int bucket = int(distance(i) * kOfOne);
      sums_[bucket] += weights_[i];
      ++counts_[bucket];
    }
  }

  // Leave the first `most`; false where the filled buckets hold fewer.
  bool end_after(int64_t most) {
    int64_t before = 0;
    for (int bucket = 0; bucket < filled_; ++bucket) {
      if (before + counts_[bucket] >= most) {
        const std::vector<int64_t> members = sorted(bucket);
        return end_with(members, size_t(most - before), bucket);
      }
      before += counts_[bucket];
    }
    return false;
  }

  // Leave the fewest that hold this share of what is left; false where the filled buckets do not.
  bool end_with_share(double share) {
    double total = 0.0, before = 0.0;
    const bool is_cut = end_ < kBuckets;
    const int buckets = is_cut ? end_ + 1 : filled_;
    if (is_cut)
      for (int bucket = 0; bucket < buckets; ++bucket) total += sums_[bucket];
    else
      for (double sum : block_sums()) total += sum;
    for (int bucket = 0; bucket < buckets; ++bucket) {
      if (before + sums_[bucket] >= share * total && counts_[bucket]) {
        const std::vector<int64_t> members = sorted(bucket);
        size_t some = 0;
        do before += weights_[members[some++]];
        while (before < share * total && some < members.size());
        return end_with(members, some, bucket);
      }
      before += sums_[bucket];
    }
    return is_cut;  // roundings may ask for more than there is
  }

  // Those of a bucket that are left, the best first.
  std::vector<int64_t> sorted(int bucket) const {
    std::vector<int64_t> members;
    for (int64_t i : near_)
      if (int(distance(i) * kOfOne) == bucket && is_left(i)) members.push_back(i);
    std::stable_sort(members.begin(), members.end(),
                     [this](int64_t a, int64_t b) { return scores_[a] > scores_[b]; });
    return members;
  }

  // The first `some` members of a bucket are the last that are left.
  bool end_with(const std::vector<int64_t>& members, size_t some, int bucket) {
    end_ = bucket;
    index_ = members[some - 1];
    score_ = scores_[index_];
    sums_[bucket] = 0.0;
    counts_[bucket] = int64_t(some);
    for (size_t k = 0; k < some; ++k) sums_[bucket] += weights_[members[k]];
    return true;
  }

  std::vector<double> block_sums() const {
    std::vector<double> sums((count_ + kBlock - 1) / kBlock);
    for (size_t block = 0; block < sums.size(); ++block) {
      const int64_t begin = int64_t(block) * kBlock, end = std::min(begin + kBlock, count_);
      double part[4] = {};
      for (int64_t i = begin; i < end; ++i) part[i & 3] += weights_[i];
      sums[block] = (part[0] + part[1]) + (part[2] + part[3]);
    }
    return sums;
  }

  const float* scores_;
  const float* weights_;
  int64_t count_;
  float best_, rate_;
  int filled_ = 0;  // buckets
  std::vector<int64_t> near_;  // places in these, ascending
  int end_ = kBuckets;  // the last bucket of which something is left
  float score_ = -__builtin_inff();
  int64_t index_ = INT64_MAX;
  std::array<double, kBuckets> sums_;
  std::array<int64_t, kBuckets> counts_;
};

}  // namespace

int64_t draw(const RunKernels& kernels, const float* scores, float* weights, int64_t count,
             float best, const Filters& filters, double uniform) {
  const float rate = float(std::min(1.0 / filters.temperature, kFastest));
  ElementwiseJob job{};
  job.left = scores;
  job.out = weights;
  job.kind = kWeight;
  job.number = rate;
  job.slope = best;
  job.end = (count + 15) / 16;
  kernels.elementwise(job);
  Draw draw(scores, weights, count, best, rate);
  const bool has_filters =
      (filters.top_k > 0 && filters.top_k < count) || filters.top_p < 1.0 || filters.min_p > 0.0;
  return has_filters ? draw.place(draw.left(filters), uniform) : draw.place(uniform);
}

}  // namespace crumb
