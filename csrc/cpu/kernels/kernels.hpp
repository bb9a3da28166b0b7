// The table of kernels that each instruction-set tier fills, and the arguments they take.
//
// Kernel sources are compiled once per tier with CORE_ISA naming the tier's namespace. They include no header of the
// standard library beyond <cstdint>: an inline function compiled for AVX-512 could otherwise be the copy that the
// linker keeps for everybody.
#pragma once

#include <cstdint>

namespace core::cpu {

enum class Element : int { float32, bfloat16 };

constexpr int64_t element_size(Element type) { return type == Element::float32 ? 4 : 2; }

constexpr int max_head_dim = 256;
constexpr int tile_rows = 32;  // query rows in one item of attention

// One layer's paged KV cache: key and value, each [num_blocks, num_kv_heads, block_size, head_dim], contiguous.
struct KVCache {
  void* key;
  void* value;
  Element type;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t block_size;
};

struct KVWrite {
  const void* key;  // [num_tokens, num_kv_heads, head_dim], rows key_stride elements apart
  const void* value;
  int64_t key_stride;
  int64_t value_stride;
  Element type;
  const int32_t* slot_mapping;  // [num_tokens], block * block_size + offset; negative: skip
  int64_t num_tokens;
  KVCache cache;
};

struct PagedAttention {
  const void* query;  // [num_tokens, num_heads, head_dim], rows query_stride elements apart
  void* out;          // the same shape, rows out_stride elements apart
  int64_t query_stride;
  int64_t out_stride;
  Element type;
  const int32_t* block_tables;  // [num_seqs, max_blocks], rows block_table_stride elements apart
  int64_t block_table_stride;
  const int32_t* query_start;  // [num_seqs + 1]
  const int32_t* seq_lens;     // [num_seqs], this step's tokens included
  int64_t num_seqs;
  int64_t num_heads;
  int64_t window;  // 0: full attention
  float scale;
  KVCache cache;
};

// One unit of parallel work. With group = num_heads / num_kv_heads, the rows of a sequence under one KV head are
// numbered query * group + head within the group; an item is rows [first, last), at most tile_rows of them.
struct AttentionItem {
  int32_t seq;
  int32_t kv_head;
  int32_t first;
  int32_t last;
};

struct Kernels {
  void (*kv_write)(const KVWrite& args, int64_t first_token, int64_t last_token) noexcept;
  void (*attend)(const PagedAttention& args, const AttentionItem& item) noexcept;
};

namespace scalar {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace core::cpu
