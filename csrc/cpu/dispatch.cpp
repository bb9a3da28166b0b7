#include "dispatch.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.hpp"
#include "parallel.hpp"

namespace core::cpu {
namespace {

template <typename Args>
void by_rows(RowKernel<Args> kernel, const Args& args, int64_t rows, int64_t columns) {
  for_rows(rows, columns, [&](int64_t first, int64_t last) { kernel(args, first, last); });
}

// --- attention ------------------------------------------------------------------------------------------------

void refuse(const char* name, const char* rule) { throw std::invalid_argument(std::string(name) + ": " + rule); }

// A batch that no block table can hold would read past it: the index arrays are small, so they are read through once.
void check_sequences(const PagedAttention& args) {
  if (args.query_start[0] < 0) refuse("query_start", "begins below 0");
  for (int64_t seq = 0; seq < args.num_seqs; ++seq) {
    const int64_t num_queries = int64_t{args.query_start[seq + 1]} - args.query_start[seq];
    if (num_queries < 0) refuse("query_start", "decreases");
    if (num_queries == 0) continue;
    if (args.seq_lens[seq] < num_queries) refuse("seq_lens", "is less than the sequence's number of queries");
    if (args.seq_lens[seq] > args.block_table_stride * args.cache.block_size) {
      refuse("seq_lens", "is more than a block table's row can hold");
    }
  }
}

// The longest items come first within a sequence, so that none is left to one thread at the end.
std::vector<AttentionItem> cut(const PagedAttention& args) {
  const auto group = static_cast<int32_t>(args.num_heads / args.cache.num_kv_heads);
  const auto heads = static_cast<int32_t>(args.cache.num_kv_heads);
  std::vector<AttentionItem> items;
  for (int32_t seq = 0; seq < args.num_seqs; ++seq) {
    const int32_t queries = args.query_start[seq + 1] - args.query_start[seq];
    const int32_t computed = args.seq_lens[seq] - queries;
    for (int32_t last = queries * group; last > 0; last -= tile_rows) {
      const int32_t first = std::max(0, last - tile_rows);
      const int64_t window_begin = args.window > 0 ? computed + first / group + 1 - args.window : 0;
      const auto first_key = static_cast<int32_t>(std::max<int64_t>(0, window_begin));
      const int32_t last_key = args.both_ways ? args.seq_lens[seq] : computed + (last - 1) / group + 1;
      for (int32_t head = 0; head < heads; ++head) items.push_back({seq, head, first, last, first_key, last_key});
    }
  }
  return items;
}

// Items below which, for each thread, their splits are handed out one by one. The results are the same bits.
constexpr int64_t items_per_thread = 4;

bool worth_splitting(const std::vector<AttentionItem>& items) {
  if (num_threads() == 1 || static_cast<int64_t>(items.size()) >= items_per_thread * num_threads()) return false;
  return std::any_of(items.begin(), items.end(),
                     [](const AttentionItem& item) { return item.last_split() - item.first_split() > 1; });
}

void attend_whole(const PagedAttention& args, const std::vector<AttentionItem>& items) {
  struct Context {
    const PagedAttention& args;
    const std::vector<AttentionItem>& items;
    const Kernels& kernels;
  };
  const Context context{args, items, kernels()};
  const auto attend = [](const void* data, int64_t index) noexcept {
    const Context& context = *static_cast<const Context*>(data);
    context.kernels.attend(context.args, context.items[index]);
  };
  parallel_for(static_cast<int64_t>(items.size()), attend, &context);
}

void attend_by_splits(const PagedAttention& args, const std::vector<AttentionItem>& items) {
  struct Piece {
    int64_t item;
    int64_t split;
    int64_t state;
  };
  struct Context {
    const PagedAttention& args;
    const std::vector<AttentionItem>& items;
    const Kernels& kernels;
    std::vector<Piece> pieces;
    std::vector<int64_t> first_state;
    std::unique_ptr<float[]> states;
  };
  Context context{args, items, kernels(), {}, {}, nullptr};
  int64_t floats = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    context.first_state.push_back(floats);
    for (int64_t split = items[i].first_split(); split < items[i].last_split(); ++split) {
      context.pieces.push_back({static_cast<int64_t>(i), split, floats});
      floats += items[i].state_floats(args.cache);
    }
  }
  context.states.reset(new float[floats]);
  const auto attend = [](const void* data, int64_t index) noexcept {
    const Context& context = *static_cast<const Context*>(data);
    const Piece& piece = context.pieces[index];
    context.kernels.attend_split(context.args, context.items[piece.item], piece.split,
                                 context.states.get() + piece.state);
  };
  parallel_for(static_cast<int64_t>(context.pieces.size()), attend, &context);
  const auto merge = [](const void* data, int64_t index) noexcept {
    const Context& context = *static_cast<const Context*>(data);
    context.kernels.merge_splits(context.args, context.items[index],
                                 context.states.get() + context.first_state[index]);
  };
  parallel_for(static_cast<int64_t>(items.size()), merge, &context);
}

// --- linear ---------------------------------------------------------------------------------------------------

// Panels in an item: a pair, which the kernels take at a time, or more where they are short.
constexpr int64_t bytes_per_item = 32 << 10;
// Rows that go through the item's panels while these lie in the cache.
constexpr int64_t rows_per_item = 192;

}  // namespace

void kv_write(const KVWrite& args) {
  by_rows(kernels().kv_write, args, args.num_tokens, 2 * args.cache.num_kv_heads * args.cache.head_dim);
}

void paged_attention(const PagedAttention& args) {
  check_sequences(args);
  const std::vector<AttentionItem> items = cut(args);
  (worth_splitting(items) ? attend_by_splits : attend_whole)(args, items);
}

void linear(const Linear& args, int64_t rows) {
  struct Context {
    const Linear& args;
    void (*kernel)(const Linear&, const LinearTile&) noexcept;
    int64_t rows;
    int64_t panels_per_item;
    int64_t panel_items;
  };
  const int64_t panels = args.weight.panels();
  const int64_t panel_bytes = args.weight.panel_words() * 4;
  const int64_t per_item = std::max<int64_t>(1, bytes_per_item / panel_bytes / 2) * 2;
  const Context context{args, kernels().linear, rows, per_item, (panels + per_item - 1) / per_item};
  const auto item = [](const void* data, int64_t index) noexcept {
    const Context& context = *static_cast<const Context*>(data);
    const int64_t row = index / context.panel_items * rows_per_item;
    const int64_t panel = index % context.panel_items * context.panels_per_item;
    context.kernel(context.args, {row, std::min(row + rows_per_item, context.rows), panel,
                                  std::min(panel + context.panels_per_item, context.args.weight.panels())});
  };
  parallel_for((rows + rows_per_item - 1) / rows_per_item * context.panel_items, item, &context);
}

uint32_t read_memory(const void* from, int64_t bytes) {
  constexpr int64_t item_words = int64_t{1} << 18;
  std::atomic<uint32_t> seen{0};
  const int64_t words = bytes / 4;
  const auto* start = static_cast<const uint32_t*>(from);
  for_rows((words + item_words - 1) / item_words, elements_per_item, [&](int64_t item, int64_t) {
    seen |= kernels().read_words(start + item * item_words, std::min(item_words, words - item * item_words));
  });
  return seen;
}

int64_t multiply(Element type, int64_t rounds) {
  std::atomic<int64_t> flops{0};
  for_rows(num_threads(), elements_per_item, [&](int64_t, int64_t) { flops += kernels().multiply_words(type, rounds); });
  return flops;
}

void norm(const Norm& args, int64_t rows) { by_rows(kernels().norm, args, rows, args.x.columns); }

void silu_mul(const SiluMul& args, int64_t rows) { by_rows(kernels().silu_mul, args, rows, args.gate_up.columns); }

void layer_norm(const LayerNorm& args, int64_t rows) { by_rows(kernels().layer_norm, args, rows, args.x.columns); }

void activation(const Activation& args, int64_t rows) { by_rows(kernels().activation, args, rows, args.x.columns); }

void sum(const Sum& args, int64_t rows) { by_rows(kernels().sum, args, rows, args.x.columns); }

void rope(const Rope& args, int64_t rows) { by_rows(kernels().rope, args, rows, args.x.columns); }

}  // namespace core::cpu
