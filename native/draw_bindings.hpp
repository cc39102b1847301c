// Draws of tokens, bound to Python.
#pragma once

#include <nanobind/nanobind.h>

namespace crumb {
void bind_draw(nanobind::module_& m);
}
