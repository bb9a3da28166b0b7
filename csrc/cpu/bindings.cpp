// The Python module `platforms._shared._native`. Tensors come as addresses (`Tensor.data_ptr()`), strides in elements,
// element types by torch's names; arguments are checked here and nowhere below. The GIL is released while kernels run.
#include "bindings.hpp"

#include <pybind11/stl.h>

#include <cmath>
#include <string>

#include "checks.hpp"
#include "dispatch.hpp"
#include "isa.hpp"
#include "threads.hpp"

namespace core::cpu {
namespace {

void py_kv_write(uintptr_t key, uintptr_t value, uintptr_t key_cache, uintptr_t value_cache, uintptr_t slot_mapping,
                 int64_t num_tokens, int64_t num_kv_heads, int64_t head_dim, int64_t block_size, int64_t key_stride,
                 int64_t value_stride, const std::string& dtype, const std::string& cache_dtype) {
  require(num_tokens >= 0, "num_tokens", "must not be negative");
  const KVCache cache = kv_cache(key_cache, value_cache, cache_dtype, num_kv_heads, head_dim, block_size);
  require(key_stride >= num_kv_heads * head_dim, "key_stride", "is less than num_kv_heads * head_dim");
  require(value_stride >= num_kv_heads * head_dim, "value_stride", "is less than num_kv_heads * head_dim");
  const Element type = element(dtype, "dtype");
  if (num_tokens == 0) return;
  const KVWrite args{address(key, "key"), address(value, "value"), key_stride, value_stride, type,
                     pointer<int32_t>(slot_mapping, "slot_mapping"), num_tokens, cache};
  const py::gil_scoped_release release;
  kv_write(args);
}

void py_paged_attention(uintptr_t query, int64_t query_stride, uintptr_t key_cache, uintptr_t value_cache,
                        uintptr_t block_tables, int64_t block_table_stride, uintptr_t query_start, uintptr_t seq_lens,
                        uintptr_t out, int64_t out_stride, int64_t num_seqs, int64_t num_heads, int64_t num_kv_heads,
                        int64_t head_dim, int64_t block_size, float scale, int64_t window, const std::string& dtype,
                        const std::string& cache_dtype) {
  require(num_seqs >= 0, "num_seqs", "must not be negative");
  const KVCache cache = kv_cache(key_cache, value_cache, cache_dtype, num_kv_heads, head_dim, block_size);
  require(num_heads > 0 && num_heads % num_kv_heads == 0, "num_heads", "must be a positive multiple of num_kv_heads");
  require(query_stride >= num_heads * head_dim, "query_stride", "is less than num_heads * head_dim");
  require(out_stride >= num_heads * head_dim, "out_stride", "is less than num_heads * head_dim");
  require(block_table_stride >= 0, "block_table_stride", "must not be negative");
  require(window >= 0, "window", "must not be negative; 0 means full attention");
  require(std::isfinite(scale), "scale", "must be finite");
  const Element type = element(dtype, "dtype");
  if (num_seqs == 0) return;
  const PagedAttention args{address(query, "query"),
                            address(out, "out"),
                            query_stride,
                            out_stride,
                            type,
                            pointer<int32_t>(block_tables, "block_tables"),
                            block_table_stride,
                            pointer<int32_t>(query_start, "query_start"),
                            pointer<int32_t>(seq_lens, "seq_lens"),
                            num_seqs,
                            num_heads,
                            window,
                            scale,
                            cache};
  const py::gil_scoped_release release;
  paged_attention(args);
}

uint32_t py_read_memory(uintptr_t data, int64_t bytes) {
  require(bytes >= 0, "bytes", "must not be negative");
  const auto* from = pointer<uint32_t>(data, "data");
  const py::gil_scoped_release release;
  return read_memory(from, bytes);
}

int64_t py_multiply(const std::string& dtype, int64_t rounds) {
  const Element type = dtype == "int8" ? Element::int8 : element(dtype, "dtype");
  const py::gil_scoped_release release;
  return multiply(type, rounds);
}

}  // namespace
}  // namespace core::cpu

PYBIND11_MODULE(_native, module) {
  using namespace core::cpu;
  using namespace py::literals;
  module.doc() = "CPU kernels and programs of them. See platforms/_shared/_native.pyi.";
  module.def("isa", &isa);
  module.def("set_isa", &set_isa, "name"_a);
  module.def("available_isas", &available_isas);
  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads, "num_threads"_a);
  module.def("kv_write", &py_kv_write, "key"_a, "value"_a, "key_cache"_a, "value_cache"_a, "slot_mapping"_a,
             "num_tokens"_a, "num_kv_heads"_a, "head_dim"_a, "block_size"_a, "key_stride"_a, "value_stride"_a,
             "dtype"_a, "cache_dtype"_a);
  module.def("paged_attention", &py_paged_attention, "query"_a, "query_stride"_a, "key_cache"_a, "value_cache"_a,
             "block_tables"_a, "block_table_stride"_a, "query_start"_a, "seq_lens"_a, "out"_a, "out_stride"_a,
             "num_seqs"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "block_size"_a, "scale"_a, "window"_a,
             "dtype"_a, "cache_dtype"_a);
  module.def("read_memory", &py_read_memory, "data"_a, "bytes"_a);
  module.def("multiply", &py_multiply, "dtype"_a, "rounds"_a);
  bind_program(module);
  bind_choose(module);
}
