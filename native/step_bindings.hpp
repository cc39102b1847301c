// Registers the steps of a forward pass. In: the module. Out: functions named *_step.
#pragma once

#include <nanobind/nanobind.h>

namespace crumb {
void bind_steps(nanobind::module_& m);
}
