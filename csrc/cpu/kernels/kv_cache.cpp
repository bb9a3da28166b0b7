// The KV write: this step's keys and values go to their slots of the paged cache.
#include "../vec/vec.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

template <typename Source, typename Cache>
inline void write_row(const Source* __restrict from, Cache* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) from_float(to_float(from[i]), to[i]);
}

template <typename Source, typename Cache>
void write(const KVWrite& args, int64_t first_token, int64_t last_token) {
  const KVCache& cache = args.cache;
  const auto* keys = static_cast<const Source*>(args.key);
  const auto* values = static_cast<const Source*>(args.value);
  auto* key_cache = static_cast<Cache*>(cache.key);
  auto* value_cache = static_cast<Cache*>(cache.value);
  for (int64_t token = first_token; token < last_token; ++token) {
    const int64_t slot = args.slot_mapping[token];
    if (slot < 0) continue;
    const int64_t block = slot / cache.block_size;
    const int64_t offset = slot % cache.block_size;
    for (int64_t head = 0; head < cache.num_kv_heads; ++head) {
      const int64_t to = ((block * cache.num_kv_heads + head) * cache.block_size + offset) * cache.head_dim;
      const int64_t from = head * cache.head_dim;
      write_row(keys + token * args.key_stride + from, key_cache + to, cache.head_dim);
      write_row(values + token * args.value_stride + from, value_cache + to, cache.head_dim);
    }
  }
}

}  // namespace

void kv_write(const KVWrite& args, int64_t first_token, int64_t last_token) noexcept {
  const bool wide_source = args.type == Element::float32;
  const bool wide_cache = args.cache.type == Element::float32;
  const auto kernel = wide_source ? (wide_cache ? write<float, float> : write<float, uint16_t>)
                                  : (wide_cache ? write<uint16_t, float> : write<uint16_t, uint16_t>);
  kernel(args, first_token, last_token);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
