// The ops as a program takes them: `program.OP(rows, *inputs, *outputs, **attrs)`, as core/ops.py records them.
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <string>

#include "bindings.hpp"
#include "checks.hpp"
#include "dispatch.hpp"
#include "program.hpp"

namespace core::cpu {
namespace {

// --- operands -------------------------------------------------------------------------------------------------

Matrix matrix(uintptr_t data, const std::string& dtype, int64_t columns, int64_t stride) {
  const Element type = dtype == "int32" ? Element::int32 : element(dtype, "dtype");
  require(columns >= 0, "columns", "must not be negative");
  require(stride >= 0, "stride", "must not be negative");
  require(data % static_cast<uintptr_t>(element_size(type)) == 0, "data", "is not aligned to its element type");
  return {address(data, "data"), type, columns, stride};
}

Matrix slice(const Matrix& of, int64_t first, int64_t columns) {
  require(first >= 0 && columns >= 0 && first + columns <= of.columns, "columns", "are not all the tensor's");
  return {static_cast<char*>(of.data) + first * element_size(of.type), of.type, columns, of.stride};
}

Weight weight(uintptr_t data, const std::string& dtype, int64_t outputs, int64_t inputs) {
  require(outputs > 0 && inputs > 0, "shape", "must be positive");
  return {pointer<uint32_t>(data, "data"), element(dtype, "dtype"), outputs, inputs};
}

Packing packing(const Weight& weight, int64_t row, int64_t rows, const Matrix& source) {
  require(row >= 0 && rows >= 0 && row + rows <= weight.outputs, "row", "is not a row of the weight");
  require(source.type == weight.type, "dtype", "is not the weight's");
  require(source.columns == weight.inputs, "columns", "are not as many as the weight's inputs");
  return {source, weight, row};
}

void py_pack(const Weight& weight, int64_t row, int64_t rows, const Matrix& source) {
  const Packing args = packing(weight, row, rows, source);
  const py::gil_scoped_release release;
  pack(args, rows);
}

void py_unpack(const Weight& weight, int64_t row, int64_t rows, const Matrix& target) {
  const Packing args = packing(weight, row, rows, target);
  const py::gil_scoped_release release;
  unpack(args, rows);
}

void require_floats(const Matrix& x, const char* name) {
  require(x.type != Element::int32, name, "must be float32 or bfloat16");
}

void require_like(const Matrix& given, const Matrix& x, const char* name) {
  require(given.type == x.type, name, "is of another element type than the op's input");
}

// --- ops ------------------------------------------------------------------------------------------------------

void add_embedding(Program& program, Rows rows, const Matrix& token_ids, const Weight& weight, const Matrix& out) {
  require(out.type == weight.type && out.columns == weight.inputs, "out", "does not fit the weight");
  const Embedding args{indices(token_ids, "token_ids"), weight, out};
  program.add([=](const StepSizes& sizes) { embedding(args, count(sizes, rows)); });
}

void add_linear(Program& program, Rows rows, const Matrix& x, const Weight& weight, std::optional<Matrix> bias,
                const Matrix& out) {
  require(x.type == weight.type && x.columns == weight.inputs, "x", "does not fit the weight");
  require(out.columns == weight.outputs, "out", "has not as many columns as the weight has outputs");
  require(out.type == x.type || out.type == Element::float32, "out", "must be float32 or of x's type");
  if (bias) require(bias->type == weight.type && bias->columns == weight.outputs, "bias", "does not fit the weight");
  const Linear args{x, weight, bias ? bias->data : nullptr, out};
  program.add([=](const StepSizes& sizes) { linear(args, count(sizes, rows)); });
}

void add_select_rows(Program& program, Rows rows, const Matrix& x, const Matrix& index, const Matrix& out) {
  require(out.type == x.type && out.columns == x.columns, "out", "does not fit x");
  const SelectRows args{x, indices(index, "indices"), out};
  program.add([=](const StepSizes& sizes) { select_rows(args, count(sizes, rows)); });
}

Norm norm_of(const Matrix& x, const Matrix& weight, const Matrix& out, float eps) {
  require_floats(x, "x");
  require_like(weight, x, "weight");
  require_like(out, x, "out");
  require(weight.columns > 0 && x.columns % weight.columns == 0, "weight", "does not divide the columns of x");
  require(out.columns == x.columns, "out", "has not as many columns as x");
  return {x, {nullptr, x.type, 0, 0}, weight.data, weight.columns, out, {nullptr, x.type, 0, 0}, eps};
}

void add_rms_norm(Program& program, Rows rows, const Matrix& x, const Matrix& weight, const Matrix& out, float eps) {
  const Norm args = norm_of(x, weight, out, eps);
  program.add([=](const StepSizes& sizes) { norm(args, count(sizes, rows)); });
}

void add_add_rms_norm(Program& program, Rows rows, const Matrix& x, const Matrix& residual, const Matrix& weight,
                      const Matrix& normed, const Matrix& total, float eps) {
  Norm args = norm_of(x, weight, normed, eps);
  for (const Matrix& each : {residual, total}) {
    require_like(each, x, "residual");
    require(each.columns == x.columns, "residual", "has not as many columns as x");
  }
  args.residual = residual;
  args.total = total;
  program.add([=](const StepSizes& sizes) { norm(args, count(sizes, rows)); });
}

void add_silu_mul(Program& program, Rows rows, const Matrix& gate_up, const Matrix& out) {
  require_floats(gate_up, "gate_up");
  require_like(out, gate_up, "out");
  require(gate_up.columns == 2 * out.columns, "out", "has not half as many columns as gate_up");
  const SiluMul args{gate_up, out};
  program.add([=](const StepSizes& sizes) { silu_mul(args, count(sizes, rows)); });
}

void add_rope_angles(Program& program, Rows rows, const Matrix& positions, const Matrix& inv_freq, const Matrix& out,
                     float scale) {
  require(inv_freq.type == Element::float32 && out.type == Element::float32, "inv_freq", "and out must be float32");
  require(out.columns == 2 * inv_freq.columns, "out", "has not twice as many columns as inv_freq");
  const int32_t* at = indices(positions, "positions");
  const auto* frequencies = static_cast<const float*>(inv_freq.data);
  program.add([=](const StepSizes& sizes) { rope_angles(at, frequencies, scale, out, count(sizes, rows)); });
}

void add_rope(Program& program, Rows rows, const Matrix& x, const Matrix& angles, const Matrix& out, int64_t head_dim) {
  require_floats(x, "x");
  require_like(out, x, "out");
  require(angles.type == Element::float32, "angles", "must be float32");
  require(head_dim > 0 && x.columns % head_dim == 0, "head_dim", "does not divide the columns of x");
  require(angles.columns % 2 == 0 && angles.columns <= head_dim, "angles", "rotate more than head_dim, or half a pair");
  require(out.columns == x.columns, "out", "has not as many columns as x");
  const Rope args{x, angles, out, head_dim};
  program.add([=](const StepSizes& sizes) { rope(args, count(sizes, rows)); });
}

// A cache tells how wide its heads are; how much of that is filled is the op's to say.
KVCache with_heads_of(const KVCache& cache, int64_t head_dim) {
  KVCache filled = cache;
  filled.head_dim = head_dim;
  require(head_dim > 0 && filled.width() == cache.width(), "head_dim", "is not the cache's");
  return filled;
}

void add_kv_write(Program& program, Rows rows, const Matrix& key, const Matrix& value, const KVCache& given,
                  const Matrix& slot_mapping) {
  require_floats(key, "key");
  require_like(value, key, "value");
  require(key.columns % given.num_kv_heads == 0 && value.columns == key.columns, "key", "or value has not the cache's heads");
  const KVCache cache = with_heads_of(given, key.columns / given.num_kv_heads);
  KVWrite args{key.data, value.data, key.stride, value.stride, key.type, indices(slot_mapping, "slot_mapping"), 0,
               cache};
  program.add([=](const StepSizes& sizes) mutable {
    args.num_tokens = count(sizes, rows);
    kv_write(args);
  });
}

void add_attention(Program& program, Rows, const Matrix& query, const KVCache& given, const Matrix& block_table,
                   const Matrix& query_start, const Matrix& seq_lens, const Matrix& out, int64_t head_dim,
                   int64_t num_kv_heads, float scale, std::optional<int64_t> window) {
  require_floats(query, "query");
  require_like(out, query, "out");
  require(num_kv_heads == given.num_kv_heads, "num_kv_heads", "is not the cache's");
  const KVCache cache = with_heads_of(given, head_dim);
  const int64_t num_heads = query.columns / head_dim;
  require(num_heads > 0 && query.columns % head_dim == 0 && num_heads % num_kv_heads == 0, "query",
          "must have a positive multiple of num_kv_heads heads");
  require(out.columns == query.columns, "out", "has not as many columns as query");
  require(!window || *window > 0, "window", "must be positive; None means full attention");
  require(std::isfinite(scale), "scale", "must be finite");
  PagedAttention args{query.data,
                      out.data,
                      query.stride,
                      out.stride,
                      query.type,
                      indices(block_table, "block_table"),
                      block_table.stride,
                      indices(query_start, "query_start"),
                      indices(seq_lens, "seq_lens"),
                      0,
                      num_heads,
                      window.value_or(0),
                      scale,
                      cache};
  program.add([=](const StepSizes& sizes) mutable {
    args.num_seqs = sizes.num_seqs;
    paged_attention(args);
  });
}

void require_same(const Matrix& given, const Matrix& x, const char* name) {
  require_like(given, x, name);
  require(given.columns == x.columns, name, "has not as many columns as x");
}

void add_add(Program& program, Rows rows, const Matrix& x, const Matrix& y, const Matrix& out) {
  require_floats(x, "x");
  require_same(y, x, "y");
  require_same(out, x, "out");
  const Sum args{x, y, out};
  program.add([=](const StepSizes& sizes) { sum(args, count(sizes, rows)); });
}

void add_add_layer_norm(Program& program, Rows rows, const Matrix& x, const Matrix& residual, const Matrix& weight,
                        const Matrix& bias, const Matrix& out, float eps) {
  require_floats(x, "x");
  for (const Matrix& each : {residual, weight, bias, out}) require_same(each, x, "residual, weight, bias or out");
  const LayerNorm args{x, residual, weight.data, bias.data, out, eps};
  program.add([=](const StepSizes& sizes) { layer_norm(args, count(sizes, rows)); });
}

ActivationKind activation_kind(const std::string& kind) {
  if (kind == "gelu") return ActivationKind::gelu;
  if (kind == "gelu_tanh") return ActivationKind::gelu_tanh;
  if (kind == "relu") return ActivationKind::relu;
  require(kind == "tanh", "kind", "is not one of gelu, gelu_tanh, relu, tanh");
  return ActivationKind::tanh;
}

void add_activation(Program& program, Rows rows, const Matrix& x, const Matrix& out, const std::string& kind) {
  require_floats(x, "x");
  require_same(out, x, "out");
  const Activation args{x, out, activation_kind(kind)};
  program.add([=](const StepSizes& sizes) { activation(args, count(sizes, rows)); });
}

void add_encoder_attention(Program& program, Rows, const Matrix& query, const Matrix& key, const Matrix& value,
                           const Matrix& query_start, const Matrix& out, int64_t head_dim, int64_t num_kv_heads,
                           float scale) {
  require_floats(query, "query");
  require_same(out, query, "out");
  require_like(key, query, "key");
  require_like(value, query, "value");
  require(head_dim > 0 && head_dim <= max_head_dim, "head_dim", "must be in [1, 256]");
  require(num_kv_heads > 0 && key.columns == num_kv_heads * head_dim && value.columns == key.columns, "key",
          "or value has not num_kv_heads heads");
  require(query.columns > 0 && query.columns % key.columns == 0, "query",
          "must have a positive multiple of num_kv_heads heads");
  require(std::isfinite(scale), "scale", "must be finite");
  const EncoderAttention args{query, key, value, out, head_dim, num_kv_heads, scale};
  const int32_t* starts = indices(query_start, "query_start");
  program.add([&program, args, starts](const StepSizes& sizes) {
    program.reserve_scratch(scratch_bytes(args, sizes.num_seqs, sizes.num_tokens));
    encoder_attention(args, starts, sizes.num_seqs, sizes.num_tokens, program.scratch());
  });
}

void add_mean_rows(Program& program, Rows, const Matrix& x, const Matrix& query_start, const Matrix& out) {
  require_floats(x, "x");
  require(out.type == Element::float32 && out.columns == x.columns, "out", "must be float32 and as wide as x");
  const int32_t* starts = indices(query_start, "query_start");
  program.add([=](const StepSizes& sizes) { mean_rows(x, starts, out, sizes.num_seqs, sizes.num_tokens); });
}

void run(const Program& program, int64_t num_tokens, int64_t num_seqs) {
  require(num_tokens >= 0 && num_seqs >= 0, "sizes", "must not be negative");
  const py::gil_scoped_release release;
  program.run({num_tokens, num_seqs});
}

void bind_operands(py::module_& module) {
  using namespace py::literals;
  py::class_<Matrix>(module, "Tensor")
      .def(py::init(&matrix), "data"_a, "dtype"_a, "columns"_a, "stride"_a)
      .def("slice", &slice, "first"_a, "columns"_a);
  py::class_<Weight>(module, "Weight")
      .def(py::init(&weight), "data"_a, "dtype"_a, "outputs"_a, "inputs"_a)
      .def("pack", &py_pack, "row"_a, "rows"_a, "source"_a)
      .def("unpack", &py_unpack, "row"_a, "rows"_a, "target"_a);
  py::class_<KVCache>(module, "KVCache")
      .def(py::init(&kv_cache), "key_cache"_a, "value_cache"_a, "cache_dtype"_a, "num_kv_heads"_a, "width"_a,
           "block_size"_a);
  module.def(
      "packed_bytes",
      [](const std::string& dtype, int64_t outputs, int64_t inputs) {
        return Weight{nullptr, element(dtype, "dtype"), outputs, inputs}.bytes();
      },
      "dtype"_a, "outputs"_a, "inputs"_a);
}

}  // namespace

void bind_program(py::module_& module) {
  using namespace py::literals;
  bind_operands(module);
  py::enum_<Rows>(module, "Rows").value("tokens", Rows::tokens).value("seqs", Rows::seqs);
  py::class_<Program> program(module, "Program");
  bind_quantized(module, program);
  program.def(py::init<>())
      .def("run", &run, "num_tokens"_a, "num_seqs"_a)
      .def("embedding", &add_embedding)
      .def("linear", &add_linear)
      .def("select_rows", &add_select_rows)
      .def("rms_norm", &add_rms_norm, "rows"_a, "x"_a, "weight"_a, "out"_a, py::kw_only(), "eps"_a)
      .def("add_rms_norm", &add_add_rms_norm, "rows"_a, "x"_a, "residual"_a, "weight"_a, "normed"_a, "total"_a,
           py::kw_only(), "eps"_a)
      .def("silu_mul", &add_silu_mul)
      .def("rope_angles", &add_rope_angles, "rows"_a, "positions"_a, "inv_freq"_a, "out"_a, py::kw_only(), "scale"_a)
      .def("rope", &add_rope, "rows"_a, "x"_a, "angles"_a, "out"_a, py::kw_only(), "head_dim"_a)
      .def("add", &add_add)
      .def("add_layer_norm", &add_add_layer_norm, "rows"_a, "x"_a, "residual"_a, "weight"_a, "bias"_a, "out"_a,
           py::kw_only(), "eps"_a)
      .def("activation", &add_activation, "rows"_a, "x"_a, "out"_a, py::kw_only(), "kind"_a)
      .def("encoder_attention", &add_encoder_attention, "rows"_a, "query"_a, "key"_a, "value"_a, "query_start"_a,
           "out"_a, py::kw_only(), "head_dim"_a, "num_kv_heads"_a, "scale"_a)
      .def("mean_rows", &add_mean_rows)
      .def("kv_write", &add_kv_write)
      .def("attention", &add_attention, "rows"_a, "query"_a, "cache"_a, "block_table"_a, "query_start"_a, "seq_lens"_a,
           "out"_a, py::kw_only(), "head_dim"_a, "num_kv_heads"_a, "scale"_a, "window"_a);
}

}  // namespace core::cpu
