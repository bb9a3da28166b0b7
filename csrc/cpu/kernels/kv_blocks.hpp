// Where the elements of a head of a block of the paged cache lie (kernels.hpp, KVCache).
#pragma once

#include "kernels.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

// Elements of consecutive dims (of keys) or consecutive keys (of values) that lie side by side.
template <typename T>
constexpr int64_t per_word = sizeof(T) == 2 ? 2 : 1;

template <typename T>
inline T* head_of(const KVCache& cache, void* plane, int64_t block, int64_t head) {
  char* bytes = static_cast<char*>(plane) + (block * cache.num_kv_heads + head) * cache.head_bytes();
  return reinterpret_cast<T*>(bytes);
}

// int8's: [block_size].
template <typename T>
inline float* scales_of(const KVCache& cache, T* head) {
  return reinterpret_cast<float*>(head + cache.block_size * cache.width());
}

// Of an element in its panel of 16 outputs (keys of a key, dims of a value); `input` is its dim or key.
template <typename T>
inline int64_t panel_index(int64_t output, int64_t input) {
  return (input / per_word<T> * panel_outputs + output) * per_word<T> + input % per_word<T>;
}

template <typename T>
inline int64_t key_index(const KVCache& cache, int64_t offset, int64_t dim) {
  if (!cache.in_panels()) return offset * cache.width() + dim;
  const int64_t panel = offset / panel_outputs * panel_outputs * cache.width();
  return panel + panel_index<T>(offset % panel_outputs, dim);
}

template <typename T>
inline int64_t value_index(const KVCache& cache, int64_t offset, int64_t dim) {
  if (!cache.in_panels()) return offset * cache.width() + dim;
  const int64_t panel = dim / panel_outputs * panel_outputs * cache.block_size;
  return panel + panel_index<T>(dim % panel_outputs, offset);
}

}  // namespace
}  // namespace CORE_ISA
}  // namespace core::cpu
