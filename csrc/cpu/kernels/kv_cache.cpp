// The KV write: this step's keys and values go to their slots of the paged cache.
#include "../vec/vec.hpp"
#include "kernels.hpp"
#include "kv_blocks.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

// One token's key or value, of `count` elements, in one head of a block. `index(i)` is the place of element i.

template <typename Source, typename Cache, typename Index>
inline void write_row(const KVCache&, const Source* from, Cache* head, int64_t, int64_t count, Index index) {
  for (int64_t i = 0; i < count; ++i) from_float(to_float(from[i]), head[index(i)]);
}

// Rounded to the 255 multiples of a scale that reach the largest magnitude. Where that is not finite there are none:
// the row is read as NaN.
template <typename Source, typename Index>
inline void write_row(const KVCache& cache, const Source* from, int8_t* head, int64_t offset, int64_t count,
                      Index index) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = __builtin_fabsf(to_float(from[i]));
    if (!(magnitude <= largest)) largest = magnitude;  // a NaN stays
  }
  const bool finite = largest <= 3.4028234663852886e38f;
  const float inverse = finite && largest > 1e-30f ? 127.0f / largest : 0.0f;
  scales_of(cache, head)[offset] = finite ? largest / 127.0f : __builtin_nanf("");
  for (int64_t i = 0; i < count; ++i) {
    const float scaled = finite ? to_float(from[i]) * inverse : 0.0f;
    head[index(i)] = static_cast<int8_t>(__builtin_lrintf(scaled));
  }
}

template <typename Source, typename Cache>
void write(const KVWrite& args, int64_t first_token, int64_t last_token) {
  const KVCache& cache = args.cache;
  const int64_t dims = cache.head_dim;
  for (int64_t token = first_token; token < last_token; ++token) {
    const int64_t slot = args.slot_mapping[token];
    if (slot < 0) continue;
    const int64_t block = slot / cache.block_size;
    const int64_t offset = slot % cache.block_size;
    const auto* keys = static_cast<const Source*>(args.key) + token * args.key_stride;
    const auto* values = static_cast<const Source*>(args.value) + token * args.value_stride;
    for (int64_t head = 0; head < cache.num_kv_heads; ++head) {
      auto* key = head_of<Cache>(cache, cache.key, block, head);
      auto* value = head_of<Cache>(cache, cache.value, block, head);
      write_row(cache, keys + head * dims, key, offset, dims,
                [&](int64_t dim) { return key_index<Cache>(cache, offset, dim); });
      write_row(cache, values + head * dims, value, offset, dims,
                [&](int64_t dim) { return value_index<Cache>(cache, offset, dim); });
      // The rest of the key's last word is multiplied as well.
      if (dims % per_word<Cache> != 0) key[key_index<Cache>(cache, offset, dims)] = 0;
    }
  }
}

template <typename Source>
RowKernel<KVWrite> kernel_to(Element cache) {
  if (cache == Element::float32) return [](const KVWrite& a, int64_t f, int64_t l) noexcept { write<Source, float>(a, f, l); };
  if (cache == Element::int8) return [](const KVWrite& a, int64_t f, int64_t l) noexcept { write<Source, int8_t>(a, f, l); };
  return [](const KVWrite& a, int64_t f, int64_t l) noexcept { write<Source, uint16_t>(a, f, l); };
}

}  // namespace

void kv_write(const KVWrite& args, int64_t first_token, int64_t last_token) noexcept {
  const bool wide = args.type == Element::float32;
  (wide ? kernel_to<float> : kernel_to<uint16_t>)(args.cache.type)(args, first_token, last_token);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
