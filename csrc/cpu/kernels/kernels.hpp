// The table of kernels that each instruction-set tier fills, and the arguments they take.
//
// Kernel sources are compiled once per tier with CORE_ISA naming the tier's namespace. They include no header of the
// standard library beyond <cstdint>: an inline function compiled for AVX-512 could otherwise be the copy that the
// linker keeps for everybody.
#pragma once

#include <cstdint>

namespace core::cpu {

enum class Element : int { float32, bfloat16, int32, int8 };

constexpr int64_t element_size(Element type) {
  return type == Element::int8 ? 1 : type == Element::bfloat16 ? 2 : 4;
}

constexpr int max_head_dim = 256;
constexpr int tile_rows = 32;       // query rows in one item of attention
constexpr int split_keys = 256;     // keys, from a multiple of that on, whose attention is computed for itself
constexpr int panel_outputs = 16;  // outputs of a weight that lie side by side

// --- matrices ---------------------------------------------------------------------------------------------------

// Rows of `columns` elements, `stride` elements apart; how many rows there are is said where they are used.
struct Matrix {
  void* data;
  Element type;
  int64_t columns;
  int64_t stride;
};

// A weight [outputs, inputs], packed: words of 4 bytes, each one float or two bfloat16 of consecutive inputs (the last
// one filled up with a zero), as [panels, words, 16 outputs]. Reading it front to back streams 16 outputs at a time,
// and 16 words of a panel are the 1 KiB tile that a matrix unit takes. Outputs that fill up the last panel are zeros.
struct Weight {
  void* data;
  Element type;
  int64_t outputs;
  int64_t inputs;

  int64_t panels() const { return (outputs + panel_outputs - 1) / panel_outputs; }
  int64_t words() const { return (inputs * element_size(type) + 3) / 4; }
  int64_t panel_words() const { return words() * panel_outputs; }
  int64_t bytes() const { return panels() * panel_words() * 4; }
};

struct Linear {
  Matrix x;
  Weight weight;
  const void* bias;  // [outputs] of the weight's type, or null
  Matrix out;
};

// One unit of parallel work.
struct LinearTile {
  int64_t first_row;
  int64_t last_row;
  int64_t first_panel;
  int64_t last_panel;
};

struct QuantizedLinear;  // quantized.hpp

struct Norm {
  Matrix x;
  Matrix residual;  // its data may be null: nothing to add
  const void* weight;
  int64_t width;  // of the weight; a row of x has columns / width groups
  Matrix out;
  Matrix total;  // x + residual, if there is one
  float eps;
};

struct SiluMul {
  Matrix gate_up;
  Matrix out;
};

// The norm of x + residual.
struct LayerNorm {
  Matrix x;
  Matrix residual;
  const void* weight;
  const void* bias;
  Matrix out;
  float eps;
};

enum class ActivationKind : int { gelu, gelu_tanh, relu, tanh };

struct Activation {
  Matrix x;
  Matrix out;
  ActivationKind kind;
};

struct Sum {
  Matrix x;
  Matrix y;
  Matrix out;
};

struct Rope {
  Matrix x;
  Matrix angles;  // float32: cosines, then sines, of the first `columns` dimensions of a head
  Matrix out;
  int64_t head_dim;
};

struct Embedding {
  const int32_t* token_ids;
  Weight weight;
  Matrix out;
};

struct SelectRows {
  Matrix x;
  const int32_t* indices;
  Matrix out;
};

// Rows of a matrix and of a weight, from row `first` of the weight on.
struct Packing {
  Matrix rows;
  Weight weight;
  int64_t first;
};

// --- attention --------------------------------------------------------------------------------------------------

// One layer's paged KV cache: key and value, each [num_blocks, num_kv_heads, block_size, width] elements, contiguous.
//
// Where block_size is a multiple of 16, a head of a block lies in words of 4 bytes (one float, or two bfloat16), as the
// products take them, so that nothing is transposed to be read:
//   keys    [block_size / 16 panels, width / per_word words, 16 keys, per_word dims]
//   values  [width / 16 panels, block_size / per_word words, 16 dims, per_word keys]
// 16 words of a panel are the 1 KiB tile that a matrix unit takes. Other blocks lie token by token, and are put into
// that order as they are read. int8 lies as float32 does, one element in place of a word, and is followed by a float32
// a token, [block_size], by which its elements are to be multiplied.
struct KVCache {
  void* key;
  void* value;
  Element type;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t block_size;

  int64_t width() const { return (head_dim + panel_outputs - 1) / panel_outputs * panel_outputs; }
  bool in_panels() const { return block_size % panel_outputs == 0; }
  int64_t head_bytes() const { return block_size * (width() * element_size(type) + (type == Element::int8 ? 4 : 0)); }
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
  bool both_ways = false;  // a row sees all of its sequence, and not only what is before it
};

// Of a step's rows within their sequences; nothing is cached.
struct EncoderAttention {
  Matrix query;
  Matrix key;
  Matrix value;
  Matrix out;
  int64_t head_dim;
  int64_t num_kv_heads;
  float scale;
};

// One unit of parallel work. With group = num_heads / num_kv_heads, the rows of a sequence under one KV head are
// numbered query * group + head within the group; an item is rows [first, last), at most tile_rows of them, and the
// keys [first_key, last_key) that one of them or another sees.
struct AttentionItem {
  int32_t seq;
  int32_t kv_head;
  int32_t first;
  int32_t last;
  int32_t first_key;
  int32_t last_key;

  int64_t first_split() const { return first_key / split_keys; }
  int64_t last_split() const { return (last_key + split_keys - 1) / split_keys; }
  // What attention over one split leaves, in floats: for each row its output [width], its maximum and its sum.
  int64_t state_floats(const KVCache& cache) const { return (last - first) * (cache.width() + 2); }
};

// --- the table --------------------------------------------------------------------------------------------------

// --- choosing tokens --------------------------------------------------------------------------------------------

constexpr int choice_group = 64;                    // logits that are looked at together
constexpr double weight_unit = 1099511627776.0;     // 2^40: probabilities are summed as integers, so in any order
constexpr uint64_t golden = 0x9e3779b97f4a7c15u;    // SplitMix64's

// Of one row: a token's gap is (logit - max) * sharpness, and its probability goes with e^gap.
struct ChoiceScale {
  double max;
  double sharpness;
};

template <typename Args>
using RowKernel = void (*)(const Args& args, int64_t first_row, int64_t last_row) noexcept;

struct Kernels {
  RowKernel<KVWrite> kv_write;
  void (*attend)(const PagedAttention& args, const AttentionItem& item) noexcept;
  // The same in two steps, the first of which threads can share: the state of one split, and what the states of all
  // splits, one after the other, amount to.
  void (*attend_split)(const PagedAttention& args, const AttentionItem& item, int64_t split, float* state) noexcept;
  void (*merge_splits)(const PagedAttention& args, const AttentionItem& item, float* states) noexcept;
  void (*linear)(const Linear& args, const LinearTile& tile) noexcept;
  // Rows of x to their place in args.quantized, and these times the panels of the weight.
  RowKernel<QuantizedLinear> quantize_rows;
  void (*linear_quantized)(const QuantizedLinear& args, const LinearTile& tile) noexcept;
  RowKernel<Norm> norm;
  RowKernel<SiluMul> silu_mul;
  RowKernel<Rope> rope;
  RowKernel<LayerNorm> layer_norm;
  RowKernel<Activation> activation;
  RowKernel<Sum> sum;
  // The largest of each group of a row, NaNs aside; whether there are any.
  bool (*group_maxima)(const float* row, int64_t count, float* maxima) noexcept;
  // The weights e^gap, in units of 2^-40, of a group's logits that are at least `least`; their sum. Weights may be null.
  int64_t (*weigh)(const float* x, int64_t count, const ChoiceScale& scale, float least, int64_t* weights) noexcept;
  // Those of a group, as bits, whose gap and noise together may exceed `best`: all that do, and few others. `state` is
  // the generator's at the group's first token.
  uint64_t (*contenders)(const float* x, int64_t count, const ChoiceScale& scale, float least, double best,
                         uint64_t state) noexcept;
  // For benchmarks: reads words, and returns them all or-ed; multiplies in registers, and returns how many FLOPs it took.
  uint32_t (*read_words)(const uint32_t* from, int64_t words) noexcept;
  int64_t (*multiply_words)(Element type, int64_t rounds) noexcept;
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
namespace avx512bf16 {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}
namespace neon_dotprod {
extern const Kernels kernels;
}
namespace neon_bf16 {
extern const Kernels kernels;
}
namespace vsx {
extern const Kernels kernels;
}

}  // namespace core::cpu
