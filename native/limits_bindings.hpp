// Registers the machine's limits. In: the module. Out: read_pass and dot_peak.
#pragma once

#include <nanobind/nanobind.h>

namespace crumb {
void bind_limits(nanobind::module_& m);
}
