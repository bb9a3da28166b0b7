// What is checked of the arguments that Python gives, and nowhere below.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels/kernels.hpp"

namespace core::cpu {

inline void require(bool condition, const char* name, const char* rule) {
  if (!condition) throw std::invalid_argument(std::string(name) + ": " + rule);
}

inline void* address(uintptr_t given, const char* name) {
  require(given != 0, name, "is a null address");
  return reinterpret_cast<void*>(given);
}

template <typename T>
T* pointer(uintptr_t given, const char* name) {
  require(given % sizeof(T) == 0, name, "is not aligned to its element type");
  return static_cast<T*>(address(given, name));
}

inline Element element(const std::string& dtype, const char* name) {
  if (dtype == "float32") return Element::float32;
  if (dtype == "bfloat16") return Element::bfloat16;
  throw std::invalid_argument(std::string(name) + ": '" + dtype + "' is not one of float32, bfloat16");
}

inline Element cache_element(const std::string& dtype) {
  return dtype == "int8" ? Element::int8 : element(dtype, "cache_dtype");
}

inline const int32_t* indices(const Matrix& given, const char* name) {
  require(given.type == Element::int32, name, "must be int32");
  return static_cast<const int32_t*>(given.data);
}

inline KVCache kv_cache(uintptr_t key, uintptr_t value, const std::string& dtype, int64_t num_kv_heads,
                        int64_t head_dim, int64_t block_size) {
  require(num_kv_heads > 0, "num_kv_heads", "must be positive");
  require(head_dim > 0 && head_dim <= max_head_dim, "head_dim", "must be in [1, 256]");
  require(block_size > 0, "block_size", "must be positive");
  return {pointer<uint32_t>(key, "key_cache"), pointer<uint32_t>(value, "value_cache"), cache_element(dtype),
          num_kv_heads, head_dim, block_size};
}

}  // namespace core::cpu
