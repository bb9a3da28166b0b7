// Quantised weights and the ops that take them.
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "checks.hpp"
#include "dispatch.hpp"
#include "quantized.hpp"

namespace core::cpu {
namespace {

struct PyWeight {
  QuantizedWeight weight;
  const Scheme* scheme;
};

PyWeight make(uintptr_t data, const std::string& dtype, const std::string& name, int64_t outputs, int64_t inputs) {
  const Scheme& how = scheme(name);
  require(outputs > 0 && inputs > 0, "shape", "must be positive");
  require(inputs % how.block_inputs == 0, "inputs", "are not whole blocks of the scheme");
  require(data % 64 == 0, "data", "is not at a cache line");
  return {{static_cast<char*>(address(data, "data")), element(dtype, "dtype"), how.form, outputs, inputs}, &how};
}

void check_rows(const PyWeight& to, int64_t row, int64_t rows) {
  require(row >= 0 && rows >= 0 && row + rows <= to.weight.outputs, "row", "is not a row of the weight");
}

void check_floats(const PyWeight& to, int64_t row, int64_t rows, const Matrix& floats) {
  check_rows(to, row, rows);
  require(floats.type != Element::int32, "dtype", "is not float32 or bfloat16");
  require(floats.columns == to.weight.inputs, "columns", "are not as many as the weight's inputs");
}

void py_quantize(const PyWeight& to, int64_t row, int64_t rows, const Matrix& source) {
  check_floats(to, row, rows, source);
  require(to.scheme->quantize != nullptr, "scheme", "takes a file's blocks, not floats");
  const py::gil_scoped_release release;
  quantize(to.weight, *to.scheme, row, rows, source);
}

void py_pack_blocks(const PyWeight& to, int64_t row, int64_t rows, uintptr_t blocks, int64_t row_bytes) {
  check_rows(to, row, rows);
  require(to.scheme->decode != nullptr, "scheme", "takes floats, not a file's blocks");
  require(row_bytes == to.weight.inputs / to.scheme->block_inputs * to.scheme->block_bytes, "row_bytes",
          "are not those of the weight's inputs in the scheme");
  const auto* from = pointer<uint8_t>(blocks, "blocks");
  const py::gil_scoped_release release;
  pack_blocks(to.weight, *to.scheme, row, rows, from);
}

void py_dequantize(const PyWeight& from, int64_t row, int64_t rows, const Matrix& target) {
  check_floats(from, row, rows, target);
  const py::gil_scoped_release release;
  dequantize(from.weight, row, rows, target);
}

void add_linear(Program& program, Rows rows, const Matrix& x, const PyWeight& given, std::optional<Matrix> bias,
                const Matrix& out) {
  const QuantizedWeight& weight = given.weight;
  require(x.type == weight.type && x.columns == weight.inputs, "x", "does not fit the weight");
  require(out.columns == weight.outputs, "out", "has not as many columns as the weight has outputs");
  require(out.type == x.type || out.type == Element::float32, "out", "must be float32 or of x's type");
  if (bias) require(bias->type == weight.type && bias->columns == weight.outputs, "bias", "does not fit the weight");
  program.reserve_scratch(scratch_bytes(weight));
  QuantizedLinear args{x, weight, bias ? bias->data : nullptr, out, {}};
  program.add([&program, args, rows](const StepSizes& sizes) mutable {
    args.quantized = activations(program.scratch(), args.weight);
    linear_quantized(args, count(sizes, rows));
  });
}

void add_embedding(Program& program, Rows rows, const Matrix& token_ids, const PyWeight& given, const Matrix& out) {
  require(out.type == given.weight.type && out.columns == given.weight.inputs, "out", "does not fit the weight");
  const QuantizedEmbedding args{indices(token_ids, "token_ids"), given.weight, out};
  program.add([=](const StepSizes& sizes) { embedding_quantized(args, count(sizes, rows)); });
}

std::vector<std::string> names() {
  std::vector<std::string> found;
  for (const Scheme& each : schemes()) found.emplace_back(each.name);
  return found;
}

int64_t packed_bytes(const std::string& name, int64_t outputs, int64_t inputs) {
  constexpr uintptr_t any_line = 64;  // the size does not depend on the place
  return make(any_line, "float32", name, outputs, inputs).weight.bytes();
}

}  // namespace

void bind_quantized(py::module_& module, py::class_<Program>& program) {
  using namespace py::literals;
  py::class_<PyWeight>(module, "QuantizedWeight")
      .def(py::init(&make), "data"_a, "dtype"_a, "scheme"_a, "outputs"_a, "inputs"_a)
      .def("quantize", &py_quantize, "row"_a, "rows"_a, "source"_a)
      .def("pack_blocks", &py_pack_blocks, "row"_a, "rows"_a, "blocks"_a, "row_bytes"_a)
      .def("dequantize", &py_dequantize, "row"_a, "rows"_a, "target"_a);
  module.def("schemes", &names);
  module.def("quantized_bytes", &packed_bytes, "scheme"_a, "outputs"_a, "inputs"_a);
  program.def("linear", &add_linear).def("embedding", &add_embedding);
}

}  // namespace core::cpu
