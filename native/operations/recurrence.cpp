// Recurrence: a state of constant size that every token reads and changes, by a rule.
#include "../operation.hpp"

namespace crumb {
namespace {

struct Wkv final : Operation {
  int key, value, out;
  int64_t stride;
  const float* weights;
  States states;

  explicit Wkv(Maker& maker) : out(maker.buffer("out")) {
    const std::vector<int> inputs = maker.buffers("inputs");
    require(inputs.size() == 2, "recurrence: a key and a value");
    key = inputs[0], value = inputs[1];
    const int64_t heads = maker.of.integer("heads");
    require(maker.of.integer("key_heads") == heads && maker.of.integer("key_dim") == 1,
            "recurrence: a feature is a head");
    stride = maker.at(out).stride;
    for (const int buffer : {key, value, out}) {
      require(maker.width(buffer) == heads && maker.at(buffer).stride == stride,
              "recurrence: widths differ");
      require(buffer == out || maker.apart(buffer, out), "recurrence: reads what it writes");
    }
    const ArrayView rows = maker.of.array("weights", Element::kFloat32, 2);
    require(rows.data && rows.shape[0] == 2 && rows.shape[1] == stride,
            "recurrence: a decay and a bonus for each feature");
    weights = static_cast<const float*>(rows.data);
    states = maker.states(3 * stride);
  }

  void run(Worker& worker) const override {
    const Buffer &k = worker.buffer(key), &v = worker.buffer(value), &to = worker.buffer(out);
    const Share mine = worker.share(stride / kLaneFloats);
    worker.kernels().wkv({k.data, v.data, to.data, k.stride, v.stride, to.stride, weights, stride,
                          states, worker.step.runs, worker.step.run_count, mine.begin, mine.end});
  }
};

// The delta rule and the scan: a matrix for each head.
struct MatrixState final : Operation {
  int out;
  std::vector<int> in;  // query, key, value, step and for the delta rule share
  int64_t heads, key_heads, key_dim, value_dim, weight_stride;
  const float* weights;
  States states;

  MatrixState(Maker& maker, size_t inputs)
      : out(maker.buffer("out")), in(maker.buffers("inputs")), heads(maker.of.integer("heads")),
        key_heads(maker.of.integer("key_heads")), key_dim(maker.of.integer("key_dim")) {
    require(in.size() == inputs, "recurrence: inputs of another rule");
    const int64_t width = maker.width(out);
    require(heads > 0 && heads <= width && width % heads == 0 && key_heads > 0 &&
                heads % key_heads == 0, "recurrence: heads do not divide");
    value_dim = width / heads;
    require(key_dim > 0 && key_dim <= kMostKeyFeatures, "recurrence: 1 to 256 features of a key");
    const int64_t widths[] = {key_heads * key_dim, key_heads * key_dim, width, heads, heads};
    for (size_t k = 0; k < inputs; ++k) {
      require(maker.width(in[k]) == widths[k], "recurrence: widths differ");
      require(maker.apart(in[k], out), "recurrence: reads what it writes");
    }
    const ArrayView rows = maker.of.array("weights", Element::kFloat32, 2);
    require(rows.data && rows.shape[0] == 3 && rows.shape[1] >= heads,
            "recurrence: a rate, a bias and a skip for each head");
    weights = static_cast<const float*>(rows.data), weight_stride = rows.shape[1];
    states = maker.states(heads * key_dim * buffer_stride(value_dim));
  }

  void run(Worker& worker) const override {
    const Buffer* of[5] = {};
    for (size_t k = 0; k < in.size(); ++k) of[k] = &worker.buffer(in[k]);
    const Buffer &to = worker.buffer(out), &share = in.size() > 4 ? *of[4] : to;
    const Share mine = worker.share(heads * (buffer_stride(value_dim) / kLaneFloats));
    worker.kernels().matrix_state(
        {of[0]->data, of[1]->data, of[2]->data, of[3]->data, of[4] ? share.data : nullptr, to.data,
         of[0]->stride, of[1]->stride, of[2]->stride, of[3]->stride, share.stride, to.stride,
         weights, weight_stride, states, worker.step.runs, worker.step.run_count, heads, key_heads,
         key_dim, value_dim, mine.begin, mine.end});
  }
};

// RWKV-6 and 7: a matrix for each head, each feature of which fades by its own pace.
struct WkvMatrix final : Operation {
  int out, own;         // own -1: a part of out
  std::vector<int> in;  // query, key, value, pace and of RWKV-7 share
  int64_t heads, key_dim, value_dim, weight_stride;
  const float* weights;
  States states;

  WkvMatrix(Maker& maker, bool is_seven)
      : out(maker.buffer("out")), own(is_seven ? maker.buffer("own") : -1),
        in(maker.buffers("inputs")), heads(maker.of.integer("heads")),
        key_dim(maker.of.integer("key_dim")) {
    require(in.size() == (is_seven ? 5 : 4), "recurrence: inputs of another rule");
    const int64_t width = maker.width(out);
    require(heads > 0 && heads <= width && width % heads == 0 &&
                maker.of.integer("key_heads") == heads, "recurrence: heads do not divide");
    value_dim = width / heads;
    require(key_dim > 0 && key_dim <= kMostKeyFeatures, "recurrence: 1 to 256 features of a key");
    if (is_seven)
      require(maker.width(own) == width && maker.apart(own, out), "recurrence: two outputs");
    for (size_t k = 0; k < in.size(); ++k) {
      require(maker.width(in[k]) == (k == 2 ? width : heads * key_dim), "recurrence: widths differ");
      require(maker.apart(in[k], out) && (!is_seven || maker.apart(in[k], own)),
              "recurrence: reads what it writes");
    }
    const ArrayView rows = maker.of.array("weights", Element::kFloat32, 2);
    require(rows.data && rows.shape[0] == (is_seven ? 3 : 2) && rows.shape[1] >= heads * key_dim,
            "recurrence: a weight for each feature of a key");
    weights = static_cast<const float*>(rows.data), weight_stride = rows.shape[1];
    states = maker.states(heads * key_dim * buffer_stride(value_dim));
  }

  void run(Worker& worker) const override {
    const Buffer* of[5] = {};
    for (size_t k = 0; k < in.size(); ++k) of[k] = &worker.buffer(in[k]);
    const bool is_seven = of[4] != nullptr;
    const Buffer &to = worker.buffer(out), &apart = is_seven ? worker.buffer(own) : to;
    const Buffer& share = is_seven ? *of[4] : to;
    const int64_t vectors = buffer_stride(value_dim) / kLaneFloats;
    const Share mine = worker.share(heads * ((vectors + kWkvVectors - 1) / kWkvVectors));
    worker.kernels().wkv_matrix(
        {of[0]->data, of[1]->data, of[2]->data, of[3]->data, is_seven ? share.data : nullptr,
         to.data, is_seven ? apart.data : nullptr, of[0]->stride, of[1]->stride, of[2]->stride,
         of[3]->stride, share.stride, to.stride, apart.stride, weights, weight_stride, states,
         worker.step.runs, worker.step.run_count, heads, key_dim, value_dim, mine.begin, mine.end});
  }
};

std::unique_ptr<Operation> make(Maker& maker) {
  const std::string& rule = maker.of.text("rule");
  if (rule == "delta") return std::make_unique<MatrixState>(maker, 5);
  if (rule == "scan") return std::make_unique<MatrixState>(maker, 4);
  if (rule == "wkv6") return std::make_unique<WkvMatrix>(maker, false);
  if (rule == "wkv7") return std::make_unique<WkvMatrix>(maker, true);
  require(rule == "wkv4", "recurrence: no such rule");
  return std::make_unique<Wkv>(maker);
}

const Registration registered("recurrence", make);

}  // namespace
}  // namespace crumb
