// Paged attention with an online softmax over tiles of keys (FlashAttention, Dao et al. 2022, arXiv:2205.14135).
//
// One item is up to `tile_rows` query rows that share a KV head. The keys are visited in tiles of `tile_keys` absolute
// positions, [0, 64), [64, 128), …: a tile of keys is converted to fp32 and transposed once, a tile of values
// converted once, and all rows of the item use them.
//
// A row's result is the same bits whatever shares its item, its batch or its step. Each element of a product is one
// chain of fused multiply-adds in index order, and what a row does not see adds nothing: masked scores are -inf, so
// their weight is exactly 0; positions no row of the item sees are read as zeros; a tile the row does not see leaves
// its running maximum, sum and output unchanged.
#include "../vec/vec.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr int tile_keys = 64;
constexpr float infinity = __builtin_inff();
constexpr float lowest = -3.4028234663852886e38f;  // a finite start keeps `maximum - maximum` 0 where nothing is seen

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

// The head dimension in scratch: padded with zeros to whole vectors.
constexpr int64_t padded(int64_t head_dim) { return (head_dim + lanes - 1) / lanes * lanes; }

struct Scratch {
  alignas(64) float query[tile_rows * max_head_dim];    // [rows, padded], scaled
  alignas(64) float keys[max_head_dim * tile_keys];     // [padded, tile_keys]
  alignas(64) float values[tile_keys * max_head_dim];   // [tile_keys, padded]
  alignas(64) float scores[tile_rows * tile_keys];      // [rows, tile_keys], then the weights
  alignas(64) float partial[tile_rows * max_head_dim];  // [rows, padded], one tile's weights times values
  alignas(64) float out[tile_rows * max_head_dim];      // [rows, padded]
  float maximum[tile_rows];
  float sum[tile_rows];
};

// --- c[rows, columns] = a[rows, depth] b[depth, columns] ------------------------------------------------------

template <int rows, int vectors>
inline void multiply_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                           int64_t c_stride, int64_t depth) {
  vfloat sums[rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    for (int v = 0; v < vectors; ++v) {
      const vfloat column = load(b + k * b_stride + v * lanes);
      for (int row = 0; row < rows; ++row) sums[row][v] = sums[row][v] + column * a[row * a_stride + k];
    }
  }
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < vectors; ++v) store(c + row * c_stride + v * lanes, sums[row][v]);
  }
}

template <int rows>
inline void multiply_rows(const float* a, int64_t a_stride, const float* b, int64_t columns, float* c, int64_t depth) {
  constexpr int vectors = lanes == 16 || rows <= 2 ? 4 : 2;  // as many sums as there are registers
  int64_t column = 0;
  for (; column + vectors * lanes <= columns; column += vectors * lanes) {
    multiply_block<rows, vectors>(a, a_stride, b + column, columns, c + column, columns, depth);
  }
  for (; column < columns; column += lanes) {
    multiply_block<rows, 1>(a, a_stride, b + column, columns, c + column, columns, depth);
  }
}

inline void multiply(const float* a, int64_t a_stride, const float* b, int64_t columns, float* c, int64_t rows,
                     int64_t depth) {
  for (; rows >= 4; rows -= 4, a += 4 * a_stride, c += 4 * columns) {
    multiply_rows<4>(a, a_stride, b, columns, c, depth);
  }
  if (rows == 3) multiply_rows<3>(a, a_stride, b, columns, c, depth);
  if (rows == 2) multiply_rows<2>(a, a_stride, b, columns, c, depth);
  if (rows == 1) multiply_rows<1>(a, a_stride, b, columns, c, depth);
}

// --- reading a tile of the cache ------------------------------------------------------------------------------

// Where positions [first, last) of the tile that starts at `tile` lie in the cache, in elements; -1 elsewhere.
inline void locate(const PagedAttention& args, const AttentionItem& item, int64_t tile, int64_t first, int64_t last,
                   int64_t (&rows)[tile_keys]) {
  const KVCache& cache = args.cache;
  const int32_t* table = args.block_tables + item.seq * args.block_table_stride;
  for (int64_t i = 0; i < tile_keys; ++i) rows[i] = -1;
  for (int64_t position = first; position < last;) {
    const int64_t index = position / cache.block_size;
    const int64_t start = (table[index] * cache.num_kv_heads + item.kv_head) * cache.block_size;
    const int64_t end = least(last, (index + 1) * cache.block_size);
    for (; position < end; ++position) {
      rows[position - tile] = (start + position - index * cache.block_size) * cache.head_dim;
    }
  }
}

template <typename T>
inline void load_keys(const T* cache, const int64_t (&rows)[tile_keys], int64_t head_dim, float* keys) {
  for (int64_t key = 0; key < tile_keys; key += lanes) {
    for (int64_t dim = 0; dim < head_dim; dim += lanes) {
      vfloat square[lanes];
      for (int i = 0; i < lanes; ++i) {
        const int64_t row = rows[key + i];
        square[i] = row < 0 ? vfloat{} : load_padded(cache + row, dim, head_dim);
      }
      transpose(square);
      for (int i = 0; i < lanes; ++i) store(keys + (dim + i) * tile_keys + key, square[i]);
    }
  }
}

// The same by pairs of bfloat16, which are transposed as one: half the exchanges. For whole vectors of pairs.
inline void load_key_pairs(const uint16_t* cache, const int64_t (&rows)[tile_keys], int64_t head_dim, float* keys) {
  for (int64_t key = 0; key < tile_keys; key += lanes) {
    for (int64_t dim = 0; dim < head_dim; dim += 2 * lanes) {
      vfloat square[lanes];
      for (int i = 0; i < lanes; ++i) {
        const int64_t row = rows[key + i];
        square[i] = row < 0 ? vfloat{} : load_vector<vfloat>(cache + row + dim);
      }
      transpose(square);
      for (int i = 0; i < lanes; ++i) {
        const vuint pairs = (vuint)square[i];
        store(keys + (dim + 2 * i) * tile_keys + key, (vfloat)(pairs << 16));
        store(keys + (dim + 2 * i + 1) * tile_keys + key, (vfloat)(pairs & 0xffff0000u));
      }
    }
  }
}

inline void load_keys(const uint16_t* cache, const int64_t (&rows)[tile_keys], int64_t head_dim, float* keys) {
  if (head_dim % (2 * lanes) == 0) return load_key_pairs(cache, rows, head_dim, keys);
  load_keys<uint16_t>(cache, rows, head_dim, keys);
}

template <typename T>
inline void load_values(const T* cache, const int64_t (&rows)[tile_keys], int64_t head_dim, float* values) {
  const int64_t width = padded(head_dim);
  for (int64_t key = 0; key < tile_keys; ++key) {
    for (int64_t dim = 0; dim < head_dim; dim += lanes) {
      store(values + key * width + dim,
            rows[key] < 0 ? vfloat{} : load_padded(cache + rows[key], dim, head_dim));
    }
  }
}

// --- softmax --------------------------------------------------------------------------------------------------

inline void mask(float* scores, int64_t first, int64_t last) {
  for (int64_t i = 0; i < least(first, tile_keys); ++i) scores[i] = -infinity;
  for (int64_t i = greatest(last, 0); i < tile_keys; ++i) scores[i] = -infinity;
}

// Turns a tile's scores into weights relative to the running maximum; returns what earlier sums and outputs are to be
// multiplied by, now that the maximum may have grown.
inline float weigh(float* scores, float& running_maximum, float& running_sum) {
  vfloat highest = broadcast(running_maximum);
  for (int i = 0; i < tile_keys; i += lanes) highest = maximum(load(scores + i), highest);
  const float new_maximum = reduce(highest, [](vfloat a, vfloat b) { return maximum(a, b); });
  const float decay = exp_nonpositive(broadcast(running_maximum - new_maximum))[0];
  vfloat sums = {};
  for (int i = 0; i < tile_keys; i += lanes) {
    const vfloat weights = exp_nonpositive(load(scores + i) - new_maximum);
    store(scores + i, weights);
    sums = sums + weights;
  }
  const float sum = reduce(sums, [](vfloat a, vfloat b) { return a + b; });
  running_sum = sum + running_sum * decay;
  running_maximum = new_maximum;
  return decay;
}

// --- one item -------------------------------------------------------------------------------------------------

template <typename Q, typename KV>
struct Item {
  const PagedAttention& args;
  const AttentionItem& item;
  Scratch& scratch;
  int64_t group = args.num_heads / args.cache.num_kv_heads;
  int64_t width = padded(args.cache.head_dim);
  int64_t num_rows = item.last - item.first;
  int64_t num_computed = args.seq_lens[item.seq] - (args.query_start[item.seq + 1] - args.query_start[item.seq]);

  // Row r of the item is query (item.first + r) / group of its sequence, head (item.first + r) % group of the KV head.
  int64_t query_index(int64_t row) const { return (item.first + row) / group; }

  int64_t element(int64_t row, int64_t stride) const {
    const int64_t token = args.query_start[item.seq] + query_index(row);
    return token * stride + (item.kv_head * group + (item.first + row) % group) * args.cache.head_dim;
  }

  // A row sees positions [key_begin, key_end).
  int64_t key_end(int64_t row) const { return num_computed + query_index(row) + 1; }
  int64_t key_begin(int64_t row) const { return args.window > 0 ? greatest(0, key_end(row) - args.window) : 0; }

  void begin() {
    for (int64_t row = 0; row < num_rows; ++row) {
      const Q* query = static_cast<const Q*>(args.query) + element(row, args.query_stride);
      for (int64_t dim = 0; dim < width; dim += lanes) {
        store(scratch.query + row * width + dim, load_padded(query, dim, args.cache.head_dim) * args.scale);
        store(scratch.out + row * width + dim, vfloat{});
      }
      scratch.maximum[row] = lowest;
      scratch.sum[row] = 0.0f;
    }
  }

  void visit(int64_t tile, int64_t first, int64_t last) {
    int64_t rows[tile_keys];
    locate(args, item, tile, first, last, rows);
    load_keys(static_cast<const KV*>(args.cache.key), rows, args.cache.head_dim, scratch.keys);
    load_values(static_cast<const KV*>(args.cache.value), rows, args.cache.head_dim, scratch.values);
    multiply(scratch.query, width, scratch.keys, tile_keys, scratch.scores, num_rows, args.cache.head_dim);
    float decay[tile_rows];
    for (int64_t row = 0; row < num_rows; ++row) {
      float* scores = scratch.scores + row * tile_keys;
      mask(scores, key_begin(row) - tile, key_end(row) - tile);
      decay[row] = weigh(scores, scratch.maximum[row], scratch.sum[row]);
    }
    multiply(scratch.scores, tile_keys, scratch.values, width, scratch.partial, num_rows, last - tile);
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t i = row * width; i < (row + 1) * width; i += lanes) {
        store(scratch.out + i, load(scratch.partial + i) + load(scratch.out + i) * decay[row]);
      }
    }
  }

  void finish() {
    for (int64_t row = 0; row < num_rows; ++row) {
      Q* out = static_cast<Q*>(args.out) + element(row, args.out_stride);
      const float* from = scratch.out + row * width;
      // + 0: a sum's -0 becomes +0, whose sign would tell how many zeros were added to it.
      for (int64_t i = 0; i < args.cache.head_dim; ++i) from_float(from[i] / scratch.sum[row] + 0.0f, out[i]);
    }
  }

  void run() {
    begin();
    const int64_t first = key_begin(0);
    const int64_t last = key_end(num_rows - 1);
    for (int64_t tile = first / tile_keys * tile_keys; tile < last; tile += tile_keys) {
      visit(tile, greatest(first, tile), least(last, tile + tile_keys));
    }
    finish();
  }
};

template <typename Q, typename KV>
void attend_item(const PagedAttention& args, const AttentionItem& item) {
  Scratch scratch;
  Item<Q, KV>{args, item, scratch}.run();
}

}  // namespace

void attend(const PagedAttention& args, const AttentionItem& item) noexcept {
  const bool wide_query = args.type == Element::float32;
  const bool wide_cache = args.cache.type == Element::float32;
  const auto kernel = wide_query ? (wide_cache ? attend_item<float, float> : attend_item<float, uint16_t>)
                                 : (wide_cache ? attend_item<uint16_t, float> : attend_item<uint16_t, uint16_t>);
  kernel(args, item);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
