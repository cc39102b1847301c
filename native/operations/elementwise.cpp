// Activation, gate, multiply, add: element by element, sixteen at a time, paddings included.
#include <cmath>

#include "../operation.hpp"

namespace crumb {
namespace {

struct Elementwise : Operation {
  int left, right, out, function;  // right -1: none
  float number = 0.0f;

  Elementwise(Maker& maker, const char* first, bool has_right, int function)
      : left(maker.buffer(first)), right(has_right ? maker.buffer("right") : -1),
        out(maker.buffer("out")), function(function) {
    const Buffer &a = maker.at(left), &to = maker.at(out);
    require(a.width == to.width && a.stride == to.stride, "elementwise: widths");
    if (right >= 0)
      require(maker.at(right).width == a.width && maker.at(right).stride == a.stride,
              "elementwise: widths");
  }

  void run(Worker& worker) const override {
    const Buffer &a = worker.buffer(left), &to = worker.buffer(out);
    const Share mine = worker.share(worker.rows * a.stride / 16);
    worker.kernels().elementwise({a.data, right < 0 ? nullptr : worker.buffer(right).data, to.data,
                                  mine.begin, mine.end, function, number});
  }
};

int function_of(Maker& maker) { return function_named(maker.of.text("function")); }

struct Activation final : Elementwise {
  explicit Activation(Maker& maker) : Elementwise(maker, "input", false, function_of(maker)) {
    number = maker.of.optional_number("number");
    require((function >= kScale) == !std::isnan(number), "activation: a number too many or too few");
    require(function <= kScale || number > 0.0f,
            "activation: a bound must be above 0");
  }
};
struct Gate final : Elementwise {
  explicit Gate(Maker& maker) : Elementwise(maker, "input", true, function_of(maker)) {
    require(function < kScale, "gate: a function with a number");
  }
};
struct Multiply final : Elementwise {
  explicit Multiply(Maker& maker) : Elementwise(maker, "left", true, kMultiply) {}
};
struct Add final : Elementwise {
  explicit Add(Maker& maker) : Elementwise(maker, "left", true, kAdd) {}
};

const Register<Activation> activation("activation");
const Register<Gate> gate("gate");
const Register<Multiply> multiply("multiply");
const Register<Add> add("add");

}  // namespace

int function_named(const std::string& name) {
  for (const auto& [function, code] :
       {std::pair{"silu", kSilu}, {"gelu", kGelu}, {"gelu_tanh", kGeluTanh}, {"relu", kRelu},
        {"sigmoid", kSigmoid}, {"relu2", kRelu2},
        {"scale", kScale}, {"soft_cap", kSoftCap}, {"clip", kClip}})
    if (name == function) return code;
  throw std::invalid_argument("elementwise: unknown function");
}

}  // namespace crumb
