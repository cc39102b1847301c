// What an operation is made of: named numbers, texts, buffers and arrays, as the caller gives them.
// In: values by name. Out: each as the type it must have. Throws WrongType for another type, rank or
// name; std::invalid_argument where a size is wrong.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace crumb {

struct WrongType : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

enum class Element { kFloat32, kInt32, kUint8, kOther };

struct ArrayView {
  void* data;
  std::vector<int64_t> shape;
  Element element;
  bool writable;
};

using Value = std::variant<std::monostate, bool, int64_t, double, std::string,
                           std::vector<int64_t>, ArrayView>;

class Arguments {
 public:
  Arguments(std::string kind, std::map<std::string, Value> values)
      : kind_(std::move(kind)), values_(std::move(values)) {}

  bool flag(const char* name) { return as<bool>(name, "a flag"); }
  int64_t integer(const char* name) { return as<int64_t>(name, "an integer"); }
  const std::string& text(const char* name) { return as<std::string>(name, "a text"); }
  const std::vector<int64_t>& integers(const char* name) {
    return as<std::vector<int64_t>>(name, "integers");
  }
  float number(const char* name) {
    const Value& value = at(name);
    if (const auto* whole = std::get_if<int64_t>(&value)) return float(*whole);
    return float(as<double>(name, "a number"));
  }
  // NaN where it is none.
  float optional_number(const char* name) {
    return std::holds_alternative<std::monostate>(at(name)) ? __builtin_nanf("") : number(name);
  }
  // An array of `rank` axes; null data where it is none.
  ArrayView array(const char* name, Element element, size_t rank, bool writable = false) {
    if (std::holds_alternative<std::monostate>(at(name))) return {};
    const ArrayView& view = as<ArrayView>(name, "an array");
    if (view.element != element || view.shape.size() != rank || (writable && !view.writable))
      fail(name, "an array of another type, rank or one that can be written");
    return view;
  }
  const float* floats(const char* name, int64_t count, const char* what, bool optional = false) {
    const ArrayView view = array(name, Element::kFloat32, 1);
    if (!view.data && !optional) fail(name, "an array");
    require(!view.data || view.shape[0] == count, what);
    return static_cast<const float*>(view.data);
  }
  // Raises for an argument that nobody asked for.
  void check_all_used() const {
    for (const auto& [name, value] : values_)
      if (!used_.count(name)) throw WrongType(kind_ + ": no such argument: " + name);
  }

 private:
  const Value& at(const char* name) {
    const auto place = values_.find(name);
    if (place == values_.end()) throw WrongType(kind_ + ": no " + name);
    used_.insert(name);
    return place->second;
  }
  template <class T>
  const T& as(const char* name, const char* expected) {
    const T* value = std::get_if<T>(&at(name));
    if (!value) fail(name, expected);
    return *value;
  }
  [[noreturn]] void fail(const char* name, const char* expected) const {
    throw WrongType(kind_ + ": expected " + name + " to be " + expected);
  }

  std::string kind_;
  std::map<std::string, Value> values_;
  std::set<std::string> used_;
};

}  // namespace crumb
