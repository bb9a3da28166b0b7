// Paged attention with an online softmax over tiles of keys (FlashAttention, Dao et al. 2022, arXiv:2205.14135).
//
// One item is up to `tile_rows` query rows that share a KV head. The keys are visited in tiles of `tile_keys` absolute
// positions, [0, 64), [64, 128), …, which all rows of the item share. Every `split_keys` positions the softmax starts
// anew, and the splits are merged in their order: threads can share one item's splits, or one thread take them all.
//
// In bfloat16 (query and cache, or an int8 cache) the products are dot products of bfloat16: the weights, at most 1, are
// rounded to it. Sums are float32 always. int8 is exact in bfloat16; a key's scale multiplies its scores, a value's
// scale its weights.
//
// A row's result is the same bits whatever shares its item, its batch or its step. Each element of a product is one
// chain of sums in index order, and what a row does not see adds nothing: masked scores are -inf, so their weight is
// exactly 0; positions no row of the item sees are left out; a tile or split that the row does not see leaves its
// running maximum, sum and output unchanged.
#include "../vec/products.hpp"
#include "../vec/vec.hpp"
#include "kernels.hpp"
#include "kv_tile.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr int vectors = panel_outputs / lanes;  // of a panel
constexpr float infinity = __builtin_inff();
constexpr float lowest = -3.4028234663852886e38f;  // a finite start keeps `maximum - maximum` 0 where nothing is seen

// --- products of rows with panels -----------------------------------------------------------------------------

// Calls finish(row, output, sums) with the sums of `lanes` outputs from there on.
template <typename C, int rows, int panels, typename Finish>
inline void multiply_block(const C* inputs, int64_t stride, const Stretch* stretches, int count, int panel,
                           int row, const Finish& finish) {
  using W = Words<C>;
  vfloat sums[rows][panels * vectors] = {};
  const C* at = inputs + row * stride;
  for (const Stretch* stretch = stretches; stretch < stretches + count; ++stretch) {
    const uint32_t* const* from = stretch->panels + panel;
    for (int64_t word = 0; word < stretch->words; ++word, at += W::per_word) {
      typename W::Weights weights[panels * vectors];
#pragma GCC unroll 8
      for (int i = 0; i < panels * vectors; ++i) {
        weights[i] = W::weights(from[i / vectors] + word * panel_outputs + i % vectors * lanes);
      }
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const typename W::Input input = W::input(at + r * stride);
#pragma GCC unroll 8
        for (int i = 0; i < panels * vectors; ++i) sums[r][i] = W::accumulate(sums[r][i], weights[i], input);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < panels * vectors; ++i) finish(row + r, panel * panel_outputs + i * lanes, sums[r][i]);
  }
}

template <typename C, int rows, typename Finish>
inline void multiply_rows(const C* inputs, int64_t stride, const Stretch* stretches, int count, int panels,
                          int row, const Finish& finish) {
  constexpr int most = lanes == 16 ? 4 : lanes == 8 && rows <= 2 ? 2 : 1;  // as many sums as there are registers
  int panel = 0;
  for (; panel + most <= panels; panel += most) {
    multiply_block<C, rows, most>(inputs, stride, stretches, count, panel, row, finish);
  }
  for (; panel < panels; ++panel) multiply_block<C, rows, 1>(inputs, stride, stretches, count, panel, row, finish);
}

template <typename C, typename Finish>
inline void multiply(const C* inputs, int64_t stride, const Stretch* stretches, int count, int panels,
                     int rows, const Finish& finish) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) multiply_rows<C, 4>(inputs, stride, stretches, count, panels, row, finish);
  if (rows - row == 3) multiply_rows<C, 3>(inputs, stride, stretches, count, panels, row, finish);
  if (rows - row == 2) multiply_rows<C, 2>(inputs, stride, stretches, count, panels, row, finish);
  if (rows - row == 1) multiply_rows<C, 1>(inputs, stride, stretches, count, panels, row, finish);
}

// --- softmax --------------------------------------------------------------------------------------------------

// The running softmax of an item's rows over the keys of a split, or of several.
struct State {
  float* out;  // [rows, width], not yet divided by the sums
  float* maximum;
  float* sum;

  State(float* floats, int64_t rows, int64_t width)
      : out(floats), maximum(floats + rows * width), sum(maximum + rows) {}
};

inline void mask(float* scores, int64_t first, int64_t last) {
  for (int64_t i = 0; i < least(first, tile_keys); ++i) scores[i] = -infinity;
  for (int64_t i = greatest(last, 0); i < tile_keys; ++i) scores[i] = -infinity;
}

// A tile's scores as weights relative to the running maximum; `value_scales` of int8 multiply them, or are null.
// Returns what earlier sums and outputs are to be multiplied by, now that the maximum may have grown.
template <typename C>
inline float weigh(const float* scores, const float* value_scales, C* weights, float& running_maximum,
                   float& running_sum) {
  vfloat highest = broadcast(running_maximum);
  for (int i = 0; i < tile_keys; i += lanes) highest = maximum(load(scores + i), highest);
  const float new_maximum = reduce(highest, [](vfloat a, vfloat b) { return maximum(a, b); });
  const float decay = exp_nonpositive(broadcast(running_maximum - new_maximum))[0];
  vfloat sums = {};
  for (int i = 0; i < tile_keys; i += lanes) {
    const vfloat score = load(scores + i);
    vfloat weight = exp_nonpositive(score - new_maximum);
    sums = sums + weight;
    // A key that the row does not see may have any scale.
    if (value_scales != nullptr) weight = select(score == -infinity, weight, weight * load(value_scales + i));
    store(weights + i, weight);
  }
  const float sum = reduce(sums, [](vfloat a, vfloat b) { return a + b; });
  running_sum = sum + running_sum * decay;
  running_maximum = new_maximum;
  return decay;
}

// --- one item -------------------------------------------------------------------------------------------------

template <typename Q, typename KV, typename C>
class Item {
 public:
  Item(const PagedAttention& args, const AttentionItem& item) : args_(args), item_(item) {
    for (int64_t row = 0; row < num_rows_; ++row) {
      const Q* query = static_cast<const Q*>(args.query) + element(row, args.query_stride);
      for (int64_t dim = 0; dim < args.cache.head_dim; ++dim) {
        from_float(to_float(query[dim]), query_[row * width_ + dim]);
      }
      for (int64_t dim = args.cache.head_dim; dim < width_; ++dim) query_[row * width_ + dim] = 0;
    }
  }

  // Attention over the keys of one split.
  void visit_split(int64_t split, State state) {
    begin(state);
    const int64_t first = greatest(item_.first_key, split * split_keys);
    const int64_t last = least(item_.last_key, (split + 1) * split_keys);
    for (int64_t start = first / tile_keys * tile_keys; start < last; start += tile_keys) {
      visit(start, greatest(first, start), least(last, start + tile_keys), state);
    }
  }

  void merge(State total, State next) {
    for (int64_t row = 0; row < num_rows_; ++row) {
      const float highest = total.maximum[row] > next.maximum[row] ? total.maximum[row] : next.maximum[row];
      const float earlier = exp_nonpositive(broadcast(total.maximum[row] - highest))[0];
      const float later = exp_nonpositive(broadcast(next.maximum[row] - highest))[0];
      for (int64_t i = row * width_; i < (row + 1) * width_; i += lanes) {
        const vfloat decayed = load(total.out + i) * earlier;
        store(total.out + i, decayed + load(next.out + i) * later);
      }
      const float decayed = total.sum[row] * earlier;
      total.sum[row] = decayed + next.sum[row] * later;
      total.maximum[row] = highest;
    }
  }

  void finish(State state) {
    for (int64_t row = 0; row < num_rows_; ++row) {
      Q* out = static_cast<Q*>(args_.out) + element(row, args_.out_stride);
      const float* from = state.out + row * width_;
      // + 0: a sum's -0 becomes +0, whose sign would tell how many zeros were added to it.
      for (int64_t i = 0; i < args_.cache.head_dim; ++i) from_float(from[i] / state.sum[row] + 0.0f, out[i]);
    }
  }

  void run() {
    alignas(64) float floats[2][tile_rows * (max_head_dim + 2)];
    const State total(floats[0], num_rows_, width_);
    const State next(floats[1], num_rows_, width_);
    visit_split(item_.first_split(), total);
    for (int64_t split = item_.first_split() + 1; split < item_.last_split(); ++split) {
      visit_split(split, next);
      merge(total, next);
    }
    finish(total);
  }

 private:
  // Row r of the item is query (item.first + r) / group of its sequence, head (item.first + r) % group of the KV head.
  int64_t query_index(int64_t row) const { return (item_.first + row) / group_; }

  int64_t element(int64_t row, int64_t stride) const {
    const int64_t token = args_.query_start[item_.seq] + query_index(row);
    return token * stride + (item_.kv_head * group_ + (item_.first + row) % group_) * args_.cache.head_dim;
  }

  // A row sees positions [key_begin, key_end).
  int64_t key_end(int64_t row) const {
    return args_.both_ways ? args_.seq_lens[item_.seq] : num_computed_ + query_index(row) + 1;
  }
  int64_t key_begin(int64_t row) const { return args_.window > 0 ? greatest(0, key_end(row) - args_.window) : 0; }

  void begin(State state) const {
    __builtin_memset(state.out, 0, num_rows_ * width_ * sizeof(float));
    for (int64_t row = 0; row < num_rows_; ++row) {
      state.maximum[row] = lowest;
      state.sum[row] = 0.0f;
    }
  }

  void visit(int64_t start, int64_t first, int64_t last, State state) {
    constexpr bool scaled = sizeof(KV) == 1;
    tile_.read(args_, item_, start, first, last);
    multiply(query_, width_, &tile_.keys, 1, tile_panels, num_rows_, [&](int row, int key, vfloat sums) {
      if constexpr (scaled) sums = sums * load(tile_.key_scales + key);
      store(scores_ + row * tile_keys + key, sums * args_.scale);
    });
    float decay[tile_rows];
    for (int64_t row = 0; row < num_rows_; ++row) {
      float* scores = scores_ + row * tile_keys;
      mask(scores, key_begin(row) - start, key_end(row) - start);
      decay[row] = weigh(scores, scaled ? tile_.value_scales : nullptr, weights_ + row * tile_keys,
                         state.maximum[row], state.sum[row]);
    }
    multiply(weights_ + tile_.first_value, tile_keys, tile_.values, tile_.num_values,
             static_cast<int>(width_ / panel_outputs), num_rows_, [&](int row, int dim, vfloat sums) {
               float* out = state.out + row * width_ + dim;
               store(out, sums + load(out) * decay[row]);
             });
  }

  const PagedAttention& args_;
  const AttentionItem& item_;
  const int64_t group_ = args_.num_heads / args_.cache.num_kv_heads;
  const int64_t width_ = args_.cache.width();
  const int num_rows_ = item_.last - item_.first;
  const int64_t num_computed_ =
      args_.seq_lens[item_.seq] - (args_.query_start[item_.seq + 1] - args_.query_start[item_.seq]);
  Tile<KV, C> tile_;
  alignas(64) C query_[tile_rows * max_head_dim];   // [rows, width], filled up with zeros
  alignas(64) float scores_[tile_rows * tile_keys];  // [rows, tile_keys]
  alignas(64) C weights_[tile_rows * tile_keys];
};

// Calls use(item) with the Item of the arguments' types.
template <typename Use>
void with_item(const PagedAttention& args, const AttentionItem& item, const Use& use) {
  const Element cache = args.cache.type;
  if (args.type == Element::float32) {
    if (cache == Element::float32) return use(Item<float, float, float>(args, item));
    if (cache == Element::bfloat16) return use(Item<float, uint16_t, float>(args, item));
    return use(Item<float, int8_t, float>(args, item));
  }
  if (cache == Element::float32) return use(Item<uint16_t, float, float>(args, item));
  if (cache == Element::bfloat16) return use(Item<uint16_t, uint16_t, uint16_t>(args, item));
  use(Item<uint16_t, int8_t, uint16_t>(args, item));
}

State state_at(const PagedAttention& args, const AttentionItem& item, float* floats) {
  return State(floats, item.last - item.first, args.cache.width());
}

}  // namespace

void attend(const PagedAttention& args, const AttentionItem& item) noexcept {
  with_item(args, item, [](auto&& each) { each.run(); });
}

void attend_split(const PagedAttention& args, const AttentionItem& item, int64_t split, float* state) noexcept {
  with_item(args, item, [&](auto&& each) { each.visit_split(split, state_at(args, item, state)); });
}

void merge_splits(const PagedAttention& args, const AttentionItem& item, float* states) noexcept {
  const State total = state_at(args, item, states);
  const int64_t size = item.state_floats(args.cache);
  with_item(args, item, [&](auto&& each) {
    for (int64_t split = item.first_split() + 1; split < item.last_split(); ++split) {
      states += size;
      each.merge(total, state_at(args, item, states));
    }
    each.finish(total);
  });
}

}  // namespace CORE_ISA
}  // namespace core::cpu
