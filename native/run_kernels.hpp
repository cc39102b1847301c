// Jobs of the kernels that run a model. In: pointers into a file's mapping and into buffers whose
// rows are padded to 16 floats. Out: results in place. Nothing is owned, nothing is allocated.
// A kernel computes each output in one order, whatever the tokens, threads or rows beside it.
#pragma once

#include <cstdint>

namespace crumb {

constexpr int64_t kBlockInputs = 128;  // inputs that share a scale of their int8 activations
constexpr int64_t kPageTokens = 16;    // positions of a page of the cache
constexpr int64_t kActivationPad = 64;  // bytes behind a row of int8 activations that may be read
constexpr int64_t kLaneFloats = 16;     // a row of a buffer is padded to a multiple of these

enum ZeroKind : int { kFixed = 0, kVariable = 1, kMinimum = 2 };

// How the groups of a super-block share its scale and minimum: not at all, each with a byte that
// multiplies the scale (and one the minimum), with a byte whose low digit multiplies the scale and
// whose high digit the minimum. From kSubPairs on the last super-block of a row may be smaller: two
// groups with the signed digits of a byte, the first low; or four with such digits of two bytes, and
// a third that has the two bits above each.
enum SubKind : int { kNoSub = 0, kSubBytes = 1, kSubDigits = 2, kSubPairs = 3, kSubQuads = 4 };

// A quantized matrix in the tile layout (tile.hpp).
struct TileMatrix {
  const uint8_t* tiles;
  const uint8_t* table;  // 16 values + 128 of a lookup format, else null
  int64_t rows, columns, group_width, tile_bytes;
  int bits, zero;  // ZeroKind
  int sub;         // SubKind
};

enum FloatKind : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kInt8 = 3 };

// An unquantized matrix, row by row.
struct FloatMatrix {
  const uint8_t* weights;
  int64_t rows, columns;
  int kind;  // FloatKind, not kInt8
  bool turned = false;  // column by column, as the transpose of a row-major matrix lies
};

// Int8 activations, one scale for 128 inputs of each token, one sum for min(group width, 128).
// Codes lie by token, or for AMX 16 tokens together: (tokens / 16, inputs / 64, 16, 64).
struct Activations {
  int8_t* codes;   // (tokens, stride), zero behind the inputs
  float* scale;    // (tokens, scale_count)
  int32_t* sum;    // (tokens, blocks) of the codes of block_inputs inputs
  int64_t stride, blocks, columns, block_inputs;
  bool together = false;
};
static constexpr int64_t scale_count(const Activations& x) {
  return (x.columns + kBlockInputs - 1) / kBlockInputs;
}

struct QuantizeJob {
  const float* x;  // (tokens, x_stride)
  int64_t x_stride;
  Activations to;
  int64_t begin, end;  // of tokens * scales
  const int32_t* rows = nullptr;  // (tokens) the row of x of each token; null: its own
};

struct MatmulJob {
  TileMatrix matrix;
  Activations x;
  int64_t tokens;
  const float* bias;  // (rows) or null
  float* out;         // (tokens, out_stride)
  int64_t out_stride;
  int64_t first_tile, last_tile;
  uint8_t* scratch;  // matmul_scratch_bytes, aligned to 64
};

struct FloatMatmulJob {
  const TileMatrix* tiles;   // one of the two
  const FloatMatrix* floats;
  const float* x;  // (tokens, x_stride)
  int64_t x_stride;
  int64_t tokens;
  const float* bias;
  float* out;
  int64_t out_stride;
  int64_t first_tile, last_tile;  // of 16 rows
  uint8_t* scratch;
};

// Inputs of a quantized matrix that have float16 weights beside their codes.
struct FloatColumns {
  const int32_t* places;  // (count) ascending
  const uint8_t* tiles;   // (tiles, count, 16) float16
  int64_t count;
};
constexpr int64_t kColumnBytes = 2 * 16;  // of a column in a tile

struct ColumnsJob {
  FloatColumns columns;
  const float* x;  // (tokens, x_stride)
  int64_t x_stride;
  int64_t tokens;
  float* out;  // (tokens, out_stride), which is added to
  int64_t out_stride;
  int64_t first_tile, last_tile;
};

struct EmbedJob {
  const TileMatrix* tiles;  // one of the two
  const FloatMatrix* floats;
  const int32_t* index;  // (tokens)
  float* out;
  int64_t out_stride, begin, end;  // tokens
  uint8_t* scratch;
  int64_t first_row = 0;  // of the table, for index 0
};

struct NormJob {
  const float* x;
  float* out;
  int64_t x_stride, out_stride, columns, begin, end;  // tokens
  const float* weight;
  const float* bias;  // null: none
  float epsilon;
  int centered;  // layer norm; else root mean square
  int64_t groups = 1;       // of `columns` each, behind each other
  int64_t weight_step = 0;  // from the weights of one group to the next's
};

// Those from kScale on take a number.
enum Function : int {
  kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kSigmoid = 4, kRelu2 = 5, kScale = 8, kSoftCap = 9, kClip = 10
};

struct ElementwiseJob {
  const float* left;
  const float* right;  // null for an activation that nothing is multiplied with
  float* out;
  int64_t begin, end;  // vectors of 16 floats
  int kind;            // Function, kMultiply, kAdd, kClampedGate or kWeight
  float number = 0.0f;  // of those from kScale on, and the limit of kClampedGate
  float slope = 1.0f;   // of kClampedGate and kWeight
};
constexpr int kMultiply = 16, kAdd = 17, kClampedGate = 18;  // these read `right`
constexpr int kWeight = 19;  // exp((left - slope) * number)

struct RotaryJob {
  const float* x;
  float* out;
  int64_t x_stride, out_stride;
  const int32_t* positions;  // (tokens)
  const float* turns;        // (positions, dimensions): cosines then sines
  int heads, head_dim, dimensions, interleaved;
  int64_t begin, end;  // tokens
};

// The next tokens of one sequence, `past` of whose tokens are in its pages.
struct Segment {
  int64_t first_row, rows, past;
  const int32_t* pages;
};

// Rows of one sequence, in order, through operations that keep a state: the state they begin with
// and where the one behind them goes, rows of (places, floats). -1: from nothing, and not kept.
struct StateRun {
  int64_t first_row, rows;
  int64_t from, to;
};

// What an operation keeps of each sequence.
struct States {
  float* floats;   // (places, stride), those of this operation
  int64_t stride;  // from one place to the next
};

// A page holds for each head: keys (head_dim, 16), values (16, value_dim padded to 16), and for int8
// 16 scales of the keys and 16 of the values. Latent ones have no values: the keys' first features
// are mixed.
struct Cache {
  uint8_t* pool;
  int64_t page_bytes, head_bytes;
  int kind;  // FloatKind
};

struct CacheStoreJob {
  const float* key;
  const float* value;
  int64_t key_stride, value_stride;
  Cache cache;
  const Segment* segments;
  int64_t segment_count;
  int heads, head_dim;
  int64_t thread, threads;
  int value_dim = -1;  // as AttentionJob's; 0: values are not stored
};

struct AttentionJob {
  const float* query;
  float* out;
  int64_t query_stride, out_stride;
  Cache cache;
  const Segment* segments;
  int64_t segment_count;
  int heads, key_value_heads, head_dim;
  float scale, soft_cap;  // 0: no cap
  int causal;
  int64_t window;  // 0: none
  int64_t thread, threads;
  float* scratch;  // attention_scratch_floats
  int value_dim = -1;    // features of a value; -1: as many as of a key
  bool latent = false;   // values are the first features of the keys
  const float* sinks = nullptr;  // (heads) scores of nothing: they take a share of the weights
  int64_t chunk = 0;  // the text is cut at multiples of it, and a query sees its own; 0: uncut
  const float* slopes = nullptr;  // (heads): slope_factor * slope * (key's place - query's) is added
  float slope_factor = 1.0f;
  bool rounded = false;  // products of slopes and places, to bfloat16
  float rate = 0.0f, span = 1.0f;  // a query at p is multiplied by 1 + rate ln(1 + (p + first) / span)
  int64_t first = 0;               // with the quotient rounded down
  const float* distances = nullptr;  // (heads, distances_width): added by key's place - query's,
  int64_t farthest = 0;              // which is held within -farthest .. farthest
};

constexpr int64_t kMostTaps = 8;

// out[t] = bias + sum of taps[j] * x[t - count + 1 + j]; a state has the count - 1 rows before.
struct ConvJob {
  const float* x;
  float* out;
  int64_t x_stride, out_stride;
  const float* taps;  // (count, tap_stride)
  const float* bias;  // (tap_stride) or null
  int64_t count, tap_stride;
  States states;
  const StateRun* runs;
  int64_t run_count;
  int64_t begin, end;  // vectors of 16 features
};

// A weighted mean of values for each feature: crumb/operations/wkv.py.
struct WkvJob {
  const float* key;
  const float* value;
  float* out;
  int64_t key_stride, value_stride, out_stride;
  const float* weights;  // (2, weight_stride): decays, bonuses
  int64_t weight_stride;
  States states;  // three rows of weight_stride
  const StateRun* runs;
  int64_t run_count;
  int64_t begin, end;  // vectors of 16 features
};

constexpr int64_t kMostKeyFeatures = 256;

// A matrix for each head: crumb/operations/matrix_states.py.
struct MatrixStateJob {
  const float *query, *key, *value, *step, *share;  // share null: a scan, without the delta rule
  float* out;
  int64_t query_stride, key_stride, value_stride, step_stride, share_stride, out_stride;
  const float* weights;  // (3, weight_stride): -e^rate, biases, skips of the heads
  int64_t weight_stride;
  States states;  // (heads, key_dim, value_dim padded to 16)
  const StateRun* runs;
  int64_t run_count;
  int64_t heads, key_heads, key_dim, value_dim;
  int64_t begin, end;  // heads times vectors of 16 values
};

constexpr int64_t kWkvVectors = 4;  // of values of a head that share what their state meets

// The same, each feature of which fades by a pace of its own: crumb/operations/wkv_matrix.py.
struct WkvMatrixJob {
  const float *query, *key, *value, *pace, *share;  // share null: RWKV-6
  float *out, *own;                                 // own null: it is a part of out
  int64_t query_stride, key_stride, value_stride, pace_stride, share_stride, out_stride, own_stride;
  const float* weights;  // (3, weight_stride): directions, renewals, bonuses; or decays, bonuses
  int64_t weight_stride;
  States states;  // (heads, key_dim, value_dim padded to 16)
  const StateRun* runs;
  int64_t run_count;
  int64_t heads, key_dim, value_dim;
  int64_t begin, end;  // heads times groups of kWkvVectors vectors of 16 values
};

// Distances on both sides of 0, and beyond the farthest as many as a vector has lanes but one.
static constexpr int64_t distances_width(int64_t farthest) { return 2 * (farthest + 15) + 1; }

static constexpr int64_t padded_to(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Floats from one row of a buffer to the next.
static constexpr int64_t buffer_stride(int64_t width) { return padded_to(width, kLaneFloats); }

// Bytes from one token's int8 activations to the next's.
static constexpr int64_t activation_stride(int64_t columns) {
  return padded_to(columns, 64) + kActivationPad;
}

// Rows of int8 activations that a step of so many tokens may touch: AMX takes 32 together.
static constexpr int64_t activation_rows(int64_t tokens) { return padded_to(tokens, 32); }

// value_dim: -1 for as many features as a key has, 0 for latent ones.
static constexpr int64_t cache_head_bytes(int64_t head_dim, int kind, int64_t value_dim = -1) {
  const int64_t element = kind == kFloat32 ? 4 : kind == kInt8 ? 1 : 2;
  return padded_to((head_dim + padded_to(value_dim < 0 ? head_dim : value_dim, 16)) * kPageTokens * element, 64) +
         (kind == kInt8 ? 2 * kPageTokens * 4 : 0);
}

// Of float_matmul: inputs decoded to f32 at once, tiles of a group, and what is copied of
// tokens: rows of which no power of two is a multiple, so that they share no lines of the cache.
constexpr int64_t kExpandedInputs = 384, kGroupTiles = 8;
constexpr int64_t kCopiedInputs = kExpandedInputs + 16, kCopiedTokens = 12;
constexpr int64_t kFloatScratch =
    4 * (kGroupTiles * 16 * kExpandedInputs + kCopiedTokens * kCopiedInputs);
constexpr int64_t kAmxScratch = 24 * 1024;  // outputs, sums of a block and of its activations

// Two unpacked tiles, their headers (two vectors for each 16 inputs), two numbers for each 16 inputs
// of 6 tokens, and what is behind them.
static constexpr int64_t matmul_scratch_bytes(int64_t columns) {
  const int64_t codes = (2 * 16 + 2 * 8 + 3) * padded_to(columns + 64, 128) + kAmxScratch;
  return codes > kFloatScratch ? codes : kFloatScratch;
}

constexpr int64_t kScoredQueries = 8;
static constexpr int64_t attention_scratch_floats(int64_t context_tokens, int64_t head_dim) {
  return kScoredQueries * (padded_to(context_tokens, 16) + 16 + head_dim + 16);
}

constexpr int64_t kTokensTogether = 16;

struct RunKernels {
  int64_t few_tokens;     // up to so many, matmul unpacks codes in registers each time
  int64_t together_from;  // tokens from which matmul wants activations 16 together
  void (*quantize)(const QuantizeJob&);
  void (*matmul)(const MatmulJob&);
  void (*float_matmul)(const FloatMatmulJob&);
  void (*add_columns)(const ColumnsJob&);
  void (*embed)(const EmbedJob&);
  void (*norm)(const NormJob&);
  void (*elementwise)(const ElementwiseJob&);
  void (*rotary)(const RotaryJob&);
  void (*cache_store)(const CacheStoreJob&);
  void (*attention)(const AttentionJob&);
  void (*conv)(const ConvJob&);
  void (*wkv)(const WkvJob&);
  void (*matrix_state)(const MatrixStateJob&);
  void (*wkv_matrix)(const WkvMatrixJob&);
};

// Whether the int8 activations of a step lie 16 tokens together: those of a few inputs never do.
static constexpr bool lie_together(const RunKernels& kernels, int64_t tokens, int64_t columns) {
  return tokens >= kernels.together_from && columns >= 32;
}

}  // namespace crumb
