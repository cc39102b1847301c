// Checks every function of RunKernels, for every instruction set that this machine runs.
// In: names of parts (none: all), and `every=N` to run one in N cases of the large grids.
// Out: a line for each mismatch, then the sets, a digest of their bits, a count. Exits 1 if one
// differed, 2 on a wrong argument.
#include <cstdarg>

#include "check.hpp"

namespace crumb::check {

std::string text(const char* format, ...) {
  char line[400];
  va_list given;
  va_start(given, format);
  std::vsnprintf(line, sizeof line, format, given);
  va_end(given);
  return line;
}

namespace {

struct Part {
  const char* name;
  void (*run)(const Sets&);
};
const Part kAll[] = {{"matmul", check_matmul}, {"floats", check_floats}, {"rows", check_rows},
                     {"attention", check_attention}, {"pool", check_pool},
                     {"engine", check_engine}};

int run(int count, char** arguments) {
  Sets sets{{}, 1};
  std::vector<Part> parts;
  for (int k = 1; k < count; ++k) {
    bool known = std::sscanf(arguments[k], "every=%d", &sets.every) == 1 && sets.every > 0;
    for (const Part& part : kAll)
      if (!std::strcmp(part.name, arguments[k])) parts.push_back(part), known = true;
    if (!known) return std::fprintf(stderr, "no such part: %s\n", arguments[k]), 2;
  }
  if (parts.empty()) parts.assign(std::begin(kAll), std::end(kAll));
  Choice choices[kMaxChoices];
  std::string names;
  for (int k = 0, found = list_choices(choices); k < found; ++k) {
    if (!choices[k].supported) continue;
    sets.tables.push_back(choices[k].table);
    names += std::string(" ") + choices[k].table->name;
  }
  for (const Part& part : parts) {
    const int64_t before = report.compared;
    part.run(sets);
    std::printf("%s: %lld comparisons\n", part.name, (long long)(report.compared - before));
    std::fflush(stdout);
  }
  std::printf("sets:%s\nfused bits: %016llx\nmismatches: %lld\n", names.c_str(),
              (unsigned long long)report.digest, (long long)report.wrong);
  return report.wrong ? 1 : 0;
}

}  // namespace
}  // namespace crumb::check

int main(int count, char** arguments) { return crumb::check::run(count, arguments); }
