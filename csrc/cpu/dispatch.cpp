#include "dispatch.hpp"

#include <algorithm>
#include <vector>

#include "isa.hpp"
#include "threads.hpp"

namespace core::cpu {
namespace {

constexpr int64_t tokens_per_write = 64;

// The longest items come first within a sequence, so that none is left to one thread at the end.
std::vector<AttentionItem> cut(const PagedAttention& args) {
  const int64_t group = args.num_heads / args.cache.num_kv_heads;
  std::vector<AttentionItem> items;
  for (int64_t seq = 0; seq < args.num_seqs; ++seq) {
    const int64_t num_rows = (args.query_start[seq + 1] - args.query_start[seq]) * group;
    for (int64_t last = num_rows; last > 0; last -= tile_rows) {
      const int64_t first = std::max<int64_t>(0, last - tile_rows);
      for (int64_t head = 0; head < args.cache.num_kv_heads; ++head) {
        items.push_back({static_cast<int32_t>(seq), static_cast<int32_t>(head), static_cast<int32_t>(first),
                         static_cast<int32_t>(last)});
      }
    }
  }
  return items;
}

}  // namespace

void kv_write(const KVWrite& args) {
  const auto write = [](const void* context, int64_t index) noexcept {
    const KVWrite& args = *static_cast<const KVWrite*>(context);
    const int64_t first = index * tokens_per_write;
    kernels().kv_write(args, first, std::min(first + tokens_per_write, args.num_tokens));
  };
  parallel_for((args.num_tokens + tokens_per_write - 1) / tokens_per_write, write, &args);
}

void paged_attention(const PagedAttention& args) {
  struct Context {
    const PagedAttention& args;
    const std::vector<AttentionItem> items;
    void (*attend)(const PagedAttention&, const AttentionItem&) noexcept;
  };
  const Context context{args, cut(args), kernels().attend};
  const auto attend = [](const void* data, int64_t index) noexcept {
    const Context& context = *static_cast<const Context*>(data);
    context.attend(context.args, context.items[index]);
  };
  parallel_for(static_cast<int64_t>(context.items.size()), attend, &context);
}

}  // namespace core::cpu
