// Storing keys and values in pages, and attention over them.
// In: three sequences that share steps, cut into chunks in several ways, on pages in random order
// that hold NaN before. Out: the cache's bytes exact, outputs within bounds, and the same bits
// however the prompt is cut, whatever shares the step, and with any number of threads.
#include <algorithm>

#include "attention_reference.hpp"

namespace crumb::check {
namespace {

// Tokens of one sequence that a step takes.
struct Take {
  int sequence;
  int64_t tokens;
};
using Schedule = std::vector<std::vector<Take>>;

class Case {
 public:
  Case(const AttentionShape& shape, std::vector<int64_t> lengths, Random& random)
      : shape_(shape), scale_(1 / std::sqrt(float(shape.head_dim))),
        head_bytes_(cache_head_bytes(shape.head_dim, shape.kind)) {
    int32_t count = 0;
    for (int64_t length : lengths) {
      sequences_.push_back(random_sequence(shape, length, random));
      expected_.push_back(attention_reference(shape, sequences_.back(), scale_));
      pages_.emplace_back();
      for (int64_t k = 0; k < length; k += kPageTokens) pages_.back().push_back(count++);
    }
    page_count_ = count + 1;  // one that nobody has
    std::vector<int32_t> order(page_count_);
    for (int32_t k = 0; k < page_count_; ++k) order[k] = k;
    for (int32_t k = page_count_ - 1; k > 0; --k) std::swap(order[k], order[random.below(k + 1)]);
    for (auto& pages : pages_)
      for (int32_t& page : pages) page = order[page];
  }

  void check(const KernelTable& set, FusedBits& fused, Random& random) {
    const std::vector<float> whole = run(set, together(), 1);
    check_outputs(set, whole);
    check_cache(set);
    fused.expect(set, whole.data(), int64_t(whole.size()), [&] { return where(set); });
    Schedule ways[] = {one_by_one(), random_chunks(random), random_chunks(random), together()};
    if (!shape_.causal) ways[0] = ways[1] = ways[2] = each_alone();
    int threads = 1;
    for (const Schedule& schedule : ways) {
      const std::vector<float> cut = run(set, schedule, ++threads);
      expect_same(cut.data(), whole.data(), int64_t(whole.size()), [&] {
        return where(set) + text(": %d steps on %d threads differ from one", int(schedule.size()),
                                 threads);
      });
    }
  }

 private:
  int64_t query_width() const { return int64_t(shape_.heads) * shape_.head_dim; }
  int64_t kept_width() const { return int64_t(shape_.key_value_heads) * shape_.head_dim; }

  Schedule together() const {
    Schedule schedule(1);
    for (size_t s = 0; s < sequences_.size(); ++s)
      schedule[0].push_back({int(s), sequences_[s].tokens});
    return schedule;
  }
  Schedule each_alone() const {
    Schedule schedule;
    for (size_t s = 0; s < sequences_.size(); ++s)
      schedule.push_back({{int(s), sequences_[s].tokens}});
    return schedule;
  }
  Schedule one_by_one() const {
    Schedule schedule;
    for (size_t s = 0; s < sequences_.size(); ++s)
      for (int64_t t = 0; t < sequences_[s].tokens; ++t) schedule.push_back({{int(s), 1}});
    return schedule;
  }
  Schedule random_chunks(Random& random) const {
    Schedule schedule;
    std::vector<int64_t> done(sequences_.size());
    while (true) {
      std::vector<Take> step;
      for (size_t s = 0; s < sequences_.size(); ++s) {
        const int64_t left = sequences_[s].tokens - done[s];
        const int64_t tokens = std::min<int64_t>(left, random.below(20));
        if (tokens) step.push_back({int(s), tokens});
        done[s] += tokens;
      }
      if (!step.empty()) schedule.push_back(step);
      bool all = true;
      for (size_t s = 0; s < done.size(); ++s) all = all && done[s] == sequences_[s].tokens;
      if (all) return schedule;
    }
  }

  // All outputs, sequence after sequence.
  std::vector<float> run(const KernelTable& set, const Schedule& schedule, int threads) {
    pool_.assign(page_count_ * shape_.key_value_heads * head_bytes_ + 64, 0xff);
    std::vector<std::vector<float>> outputs(sequences_.size());
    for (const auto& step : schedule) run_step(set, step, threads, outputs);
    std::vector<float> all;
    for (const auto& of : outputs) all.insert(all.end(), of.begin(), of.end());
    return all;
  }

  uint8_t* pool() {
    return pool_.data() + (64 - reinterpret_cast<uintptr_t>(pool_.data()) % 64) % 64;
  }

  void run_step(const KernelTable& set, const std::vector<Take>& step, int threads,
                std::vector<std::vector<float>>& outputs) {
    const int64_t stride = padded_to(query_width(), 16), kept = padded_to(kept_width(), 16);
    int64_t rows = 0, longest = 0;
    std::vector<Segment> segments;
    for (const Take& take : step) {
      const int64_t past = int64_t(outputs[take.sequence].size()) / query_width();
      segments.push_back({rows, take.tokens, past, pages_[take.sequence].data()});
      rows += take.tokens;
      longest = std::max(longest, past + take.tokens);
    }
    Memory<float> query(rows * stride), key(rows * kept), value(rows * kept), out(rows * stride);
    for (size_t k = 0; k < step.size(); ++k) {
      const Sequence& of = sequences_[step[k].sequence];
      for (int64_t row = 0; row < segments[k].rows; ++row) {
        const int64_t to = segments[k].first_row + row, from = segments[k].past + row;
        std::memcpy(&query[to * stride], &of.query[from * query_width()], query_width() * 4);
        std::memcpy(&key[to * kept], &of.key[from * kept_width()], kept_width() * 4);
        std::memcpy(&value[to * kept], &of.value[from * kept_width()], kept_width() * 4);
      }
    }
    const Cache cache{pool(), shape_.key_value_heads * head_bytes_, head_bytes_, shape_.kind};
    for (int64_t thread = 0; thread < threads; ++thread)
      set.run.cache_store({key.data(), value.data(), kept, kept, cache, segments.data(),
                           int64_t(segments.size()), shape_.key_value_heads, shape_.head_dim,
                           thread, threads});
    Memory<float> scratch(attention_scratch_floats(longest, shape_.head_dim));
    for (int64_t thread = 0; thread < threads; ++thread)
      set.run.attention({query.data(), out.data(), stride, stride, cache, segments.data(),
                         int64_t(segments.size()), shape_.heads, shape_.key_value_heads,
                         shape_.head_dim, scale_, shape_.soft_cap, shape_.causal, shape_.window,
                         thread, threads, scratch.data(), -1, false, nullptr, shape_.chunk,
                         shape_.slopes.empty() ? nullptr : shape_.slopes.data()});
    for (size_t k = 0; k < step.size(); ++k)
      for (int64_t row = segments[k].first_row; row < segments[k].first_row + segments[k].rows;
           ++row) {
        auto& to = outputs[step[k].sequence];
        to.insert(to.end(), &out[row * stride], &out[row * stride] + query_width());
        expect_untouched(&out[row * stride] + query_width(), stride - query_width(),
                         [&] { return where(set); });
      }
  }

  void check_outputs(const KernelTable& set, const std::vector<float>& outputs) {
    const float* at = outputs.data();
    for (const Attended& expected : expected_) {
      expect_near(at, expected.value.data(), expected.bound.data(), int64_t(expected.value.size()),
                  [&] { return where(set); });
      at += expected.value.size();
    }
  }

  // Every byte: those of the sequences, and 0xff where no position is.
  void check_cache(const KernelTable& set) {
    std::vector<uint8_t> expected(page_count_ * shape_.key_value_heads * head_bytes_, 0xff);
    const int64_t dim = shape_.head_dim, padded = padded_to(dim, 16);
    const int64_t element = shape_.kind == kFloat32 ? 4 : shape_.kind == kFloat16 ? 2 : 1;
    for (size_t s = 0; s < sequences_.size(); ++s)
      for (int64_t t = 0; t < sequences_[s].tokens; ++t)
        for (int64_t head = 0; head < shape_.key_value_heads; ++head) {
          const Sequence& of = sequences_[s];
          const int64_t slot = t % 16, item = t * shape_.key_value_heads + head;
          uint8_t* at = expected.data() +
                        (pages_[s][t / 16] * shape_.key_value_heads + head) * head_bytes_;
          for (int64_t d = 0; d < dim; ++d) {
            std::memcpy(at + (d * 16 + slot) * element, &of.cached_key[item * dim + d].bits,
                        element);
            std::memcpy(at + (dim * 16 + slot * padded + d) * element,
                        &of.cached_value[item * dim + d].bits, element);
          }
          if (shape_.kind != kInt8) continue;
          std::memcpy(at + head_bytes_ - 128 + 4 * slot, &of.key_scale[item], 4);
          std::memcpy(at + head_bytes_ - 64 + 4 * slot, &of.value_scale[item], 4);
        }
    expect_same(pool(), expected.data(), int64_t(expected.size()),
                [&] { return where(set) + ", bytes of the cache"; });
  }

  std::string where(const KernelTable& set) const {
    return text("attention %s: %s", set.name, shape_.name().c_str());
  }

  const AttentionShape shape_;
  const float scale_;
  const int64_t head_bytes_;
  int64_t page_count_;
  std::vector<Sequence> sequences_;
  std::vector<Attended> expected_;
  std::vector<std::vector<int32_t>> pages_;
  std::vector<uint8_t> pool_;
};

}  // namespace

void check_attention(const Sets& sets) {
  struct Heads {
    int all, kept;
  };
  struct Sight {
    bool causal;
    int64_t window;
    float soft_cap;
    bool sloped = false;
    int64_t chunk = 0;
  };
  uint64_t seed = 0;
  for (int kind : {int(kFloat32), int(kFloat16), int(kInt8)})
    for (int head_dim : {4, 16, 24, 64, 72, 80})
      for (const Heads heads : {Heads{3, 3}, Heads{4, 2}, Heads{5, 1}})
        for (const Sight sight : {Sight{true, 0, 0}, Sight{true, 17, 0}, Sight{true, 1, 5},
                                  Sight{true, 0, 30}, Sight{false, 0, 0}, Sight{true, 0, 0, true},
                                  Sight{true, 29, 7, true}, Sight{true, 0, 0, false, 18}}) {
          Random random(++seed);
          if (random.below(sets.every)) continue;
          std::vector<float> slopes;
          for (int head = 0; sight.sloped && head < heads.all; ++head)
            slopes.push_back(std::exp2(-1.3f * float(head + 1)));
          Case one({heads.all, heads.kept, head_dim, kind, sight.causal, sight.window,
                    sight.soft_cap, slopes, sight.chunk}, {37, 5, 50}, random);
          FusedBits fused;
          for (const KernelTable* set : sets.tables) one.check(*set, fused, random);
        }
}

}  // namespace crumb::check
