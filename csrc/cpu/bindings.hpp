// The parts of the Python module. Only these sources know pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include "program.hpp"

namespace py = pybind11;

namespace core::cpu {

// Tensors, packed weights, caches, and the programs over them.
void bind_program(py::module_& module);

// Quantised weights, and the ops of a program that take them.
void bind_quantized(py::module_& module, py::class_<Program>& program);

// Choosing tokens from logits.
void bind_choose(py::module_& module);

}  // namespace core::cpu
