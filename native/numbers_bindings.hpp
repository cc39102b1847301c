// Registers the numbers shared with Python. In: the module. Out: its attributes, and sizes.
#pragma once

#include <nanobind/nanobind.h>

namespace crumb {
void bind_numbers(nanobind::module_& m);
}
