// The parts of the Python module. Only these sources know pybind11.
#pragma once

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace core::cpu {

// Tensors, packed weights, caches, and the programs over them.
void bind_program(py::module_& module);

}  // namespace core::cpu
