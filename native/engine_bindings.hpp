// Registers the engine's Python class. In: the module. Out: NativeEngine and its size functions.
#pragma once

#include <nanobind/nanobind.h>

namespace crumb {
void bind_engine(nanobind::module_& m);
}
