// A tile of the paged cache as attention multiplies it: panels of 16 outputs, of words of the computing type.
//
// Where the cache has that type and whole panels, the panels are read where they lie. Else they are copied: gathered
// from a cache that lies token by token, converted from another type.
#pragma once

#include "../vec/products.hpp"
#include "kernels.hpp"
#include "kv_blocks.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr int tile_keys = 64;
constexpr int tile_panels = tile_keys / panel_outputs;
constexpr int max_panels = max_head_dim / panel_outputs;

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

// --- one panel ------------------------------------------------------------------------------------------------

struct Pair {
  vfloat first;
  vfloat second;
};

// Inputs 2 pair and 2 pair + 1 of a panel, for `lanes` of its outputs.
inline Pair load_pair(const uint16_t* panel, int64_t pair, int64_t output) {
  const vuint words = load_vector<vuint>(panel + (pair * panel_outputs + output) * 2);
  return {(vfloat)(words << 16), (vfloat)(words & 0xffff0000u)};
}

inline Pair load_pair(const int8_t* panel, int64_t pair, int64_t output) {
  const int8_t* first = panel + 2 * pair * panel_outputs + output;
  return {load_integers(first), load_integers(first + panel_outputs)};
}

inline void store_pair(float* panel, int64_t pair, int64_t output, Pair values) {
  float* first = panel + 2 * pair * panel_outputs + output;
  store(first, values.first);
  store(first + panel_outputs, values.second);
}

// Of integers below 256 and of bfloat16 itself: the halves that are cut off are zeros.
inline void store_pair(uint16_t* panel, int64_t pair, int64_t output, Pair values) {
  const vuint words = ((vuint)values.first >> 16) | ((vuint)values.second & 0xffff0000u);
  __builtin_memcpy(panel + (pair * panel_outputs + output) * 2, &words, sizeof words);
}

template <typename From, typename To>
inline void convert_panel(const From* from, To* to, int64_t inputs) {
  for (int64_t pair = 0; pair < (inputs + 1) / 2; ++pair) {
    for (int64_t output = 0; output < panel_outputs; output += lanes) {
      store_pair(to, pair, output, load_pair(from, pair, output));
    }
  }
}

// --- a tile ---------------------------------------------------------------------------------------------------

// Panels side by side, of as many words.
struct Stretch {
  const uint32_t* panels[max_panels];
  int64_t words;
};

template <typename KV, typename C>
class Tile {
 public:
  Stretch keys;                        // tile_panels panels; those without a key that is seen repeat another
  Stretch values[tile_panels + 2];     // panels of dims; they follow one another
  int num_values;
  int64_t first_value;                 // the key at which they begin, a whole word's first
  alignas(64) float key_scales[tile_keys];    // int8's; of keys that nobody sees, anything
  alignas(64) float value_scales[tile_keys];

  // Positions [first, last) of the tile that starts at `start`. No other position's value is in the stretches: a stale
  // one may be NaN, whatever its weight.
  void read(const PagedAttention& args, const AttentionItem& item, int64_t start, int64_t first, int64_t last) {
    const KVCache& cache = args.cache;
    const int32_t* table = args.block_tables + item.seq * args.block_table_stride;
    const int64_t seen_panel = (first - start) / panel_outputs;
    keys.words = (cache.head_dim + per_word<C> - 1) / per_word<C>;
    num_values = 0;
    first_value = (first - start) / per_word<C> * per_word<C>;
    for (int panel = 0; panel < tile_panels; ++panel) {
      const int64_t begin = start + panel * panel_outputs;
      const int64_t from = greatest(first, begin);
      const int64_t to = least(last, begin + panel_outputs);
      if (from >= to) continue;
      const Source source = cache.in_panels() ? locate(cache, table, item.kv_head, panel, begin)
                                              : gather(cache, table, item.kv_head, panel, begin, from, to);
      const Converted converted = convert(cache, source, panel);
      keys.panels[panel] = converted.key;
      add_values(cache, converted, from - begin, to - begin);
    }
    for (int panel = 0; panel < tile_panels; ++panel) {
      const int64_t begin = start + panel * panel_outputs;
      if (begin >= last || begin + panel_outputs <= first) keys.panels[panel] = keys.panels[seen_panel];
    }
  }

 private:
  struct Source {
    const KV* key;
    const KV* value;
    int64_t stride;  // elements from a panel of values to the next
  };

  struct Converted {
    const uint32_t* key;
    const uint32_t* value;
    int64_t stride;  // words
  };

  Source locate(const KVCache& cache, const int32_t* table, int64_t kv_head, int panel, int64_t begin) {
    const int64_t block = table[begin / cache.block_size];
    const int64_t offset = begin % cache.block_size;
    KV* key = head_of<KV>(cache, cache.key, block, kv_head);
    KV* value = head_of<KV>(cache, cache.value, block, kv_head);
    if constexpr (sizeof(KV) == 1) {
      const int64_t size = panel_outputs * sizeof(float);
      __builtin_memcpy(key_scales + panel * panel_outputs, scales_of(cache, key) + offset, size);
      __builtin_memcpy(value_scales + panel * panel_outputs, scales_of(cache, value) + offset, size);
    }
    return {key + key_index<KV>(cache, offset, 0), value + value_index<KV>(cache, offset, 0),
            panel_outputs * cache.block_size};
  }

  Source gather(const KVCache& cache, const int32_t* table, int64_t kv_head, int panel, int64_t begin, int64_t from,
                int64_t to) {
    KV* keys_to = gathered_keys_ + panel * panel_outputs * max_head_dim;
    KV* values_to = gathered_values_ + panel * panel_outputs * max_head_dim;
    for (int64_t position = from; position < to; ++position) {
      const int64_t block = table[position / cache.block_size];
      const int64_t offset = position % cache.block_size;
      KV* key = head_of<KV>(cache, cache.key, block, kv_head);
      KV* value = head_of<KV>(cache, cache.value, block, kv_head);
      const int64_t at = position - begin;
      for (int64_t dim = 0; dim < (cache.head_dim + 1) / 2 * 2; ++dim) {
        keys_to[panel_index<KV>(at, dim)] = key[offset * cache.width() + dim];
      }
      for (int64_t dim = 0; dim < cache.head_dim; ++dim) {
        const int64_t to_panel = dim / panel_outputs * panel_outputs * panel_outputs;
        values_to[to_panel + panel_index<KV>(dim % panel_outputs, at)] = value[offset * cache.width() + dim];
      }
      if constexpr (sizeof(KV) == 1) {
        key_scales[panel * panel_outputs + at] = scales_of(cache, key)[offset];
        value_scales[panel * panel_outputs + at] = scales_of(cache, value)[offset];
      }
    }
    return {keys_to, values_to, panel_outputs * panel_outputs};
  }

  Converted convert(const KVCache& cache, const Source& source, int panel) {
    if constexpr (sizeof(KV) == sizeof(C)) {
      return {reinterpret_cast<const uint32_t*>(source.key), reinterpret_cast<const uint32_t*>(source.value),
              source.stride / per_word<C>};
    } else {
      C* key = converted_keys_ + panel * panel_outputs * max_head_dim;
      C* value = converted_values_ + panel * panel_outputs * max_head_dim;
      constexpr int64_t size = panel_outputs * panel_outputs;
      convert_panel(source.key, key, cache.head_dim);
      for (int64_t dims = 0; dims < cache.width() / panel_outputs; ++dims) {
        convert_panel(source.value + dims * source.stride, value + dims * size, panel_outputs);
      }
      return {reinterpret_cast<const uint32_t*>(key), reinterpret_cast<const uint32_t*>(value), size / per_word<C>};
    }
  }

  // The words of keys [first, last) of 16. A word that is half seen is copied, with a zero for the other half.
  void add_values(const KVCache& cache, const Converted& from, int64_t first, int64_t last) {
    constexpr int64_t per = per_word<C>;
    const int64_t panels = cache.width() / panel_outputs;
    if (first % per != 0) add_half(from, first / per, 0xffff0000u, panels, edges_[0]);
    add_words(from, (first + per - 1) / per, last / per, panels);
    if (last % per != 0) add_half(from, last / per, 0xffffu, panels, edges_[1]);
  }

  void add_words(const Converted& from, int64_t first, int64_t last, int64_t panels) {
    if (first >= last) return;
    Stretch& stretch = values[num_values++];
    stretch.words = last - first;
    for (int64_t i = 0; i < panels; ++i) stretch.panels[i] = from.value + i * from.stride + first * panel_outputs;
  }

  void add_half(const Converted& from, int64_t word, uint32_t half, int64_t panels, uint32_t* edge) {
    for (int64_t i = 0; i < panels * panel_outputs; ++i) {
      const uint32_t* panel = from.value + i / panel_outputs * from.stride + word * panel_outputs;
      edge[i] = panel[i % panel_outputs] & half;
    }
    add_words({nullptr, edge, panel_outputs}, 0, 1, panels);
  }

  alignas(64) uint32_t edges_[2][max_head_dim];
  alignas(64) KV gathered_keys_[tile_keys * max_head_dim];
  alignas(64) KV gathered_values_[tile_keys * max_head_dim];
  alignas(64) C converted_keys_[tile_keys * max_head_dim];
  alignas(64) C converted_values_[tile_keys * max_head_dim];
};

}  // namespace
}  // namespace CORE_ISA
}  // namespace core::cpu
