// The kinds of operation that files of native/operations registered, by name.
#include "operation.hpp"

#include <map>

namespace crumb {
namespace {

std::map<std::string, Make>& kinds() {
  static std::map<std::string, Make> all;
  return all;
}

}  // namespace

Registration::Registration(const char* kind, Make make) { kinds()[kind] = make; }

std::vector<std::string> operation_kinds() {
  std::vector<std::string> names;
  for (const auto& [kind, make] : kinds()) names.push_back(kind);
  return names;
}

void add_operation(Engine& engine, const std::string& kind, Arguments arguments) {
  const auto place = kinds().find(kind);
  require(place != kinds().end(), "no such kind of operation");
  Maker maker(arguments, engine);
  const Limits before = engine.limits;
  try {
    std::unique_ptr<Operation> made = place->second(maker);
    arguments.check_all_used();
    if (!made) return;
    made->kind = place->first.c_str();
    engine.operations.push_back(std::move(made));
  } catch (...) {
    engine.limits = before;
    throw;
  }
}

}  // namespace crumb
