// Products of float matrices, bound to Python.
#pragma once

#include <nanobind/nanobind.h>

namespace crumb {
void bind_products(nanobind::module_& m);
}
