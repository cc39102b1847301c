// Sequences, what a cache must hold of them, and their attention in double precision.
// In: a shape and random queries, keys and values. Out: expected outputs with bounds that count
// the kernel's roundings from the numbers that the cache holds.
#pragma once

#include "check.hpp"

namespace crumb::check {

struct AttentionShape {
  int heads, key_value_heads, head_dim, kind;  // FloatKind
  bool causal;
  int64_t window;
  float soft_cap;
  std::vector<float> slopes = {};  // a head's each, or none
  int64_t chunk = 0;
  std::string name() const;
};

// One number of the cache: its value, and its bits in the cache's kind.
struct Cached {
  double value;
  uint32_t bits;
};

// One sequence's rows, without padding.
struct Sequence {
  int64_t tokens;
  std::vector<float> query;       // (tokens, heads, head_dim)
  std::vector<float> key, value;  // (tokens, key_value_heads, head_dim)
  std::vector<Cached> cached_key, cached_value;
  std::vector<float> key_scale, value_scale;  // (tokens, key_value_heads), int8 only
};

Sequence random_sequence(const AttentionShape& shape, int64_t tokens, Random& random);

struct Attended {
  std::vector<double> value, bound;  // (tokens, heads, head_dim)
};
Attended attention_reference(const AttentionShape& shape, const Sequence& of, float scale);

}  // namespace crumb::check
