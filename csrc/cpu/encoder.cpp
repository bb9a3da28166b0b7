// Attention within a step: its keys and values are put into blocks of a cache that lasts as long as the call, and the
// kernels of paged attention read them, in both directions.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bfloat16.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

namespace core::cpu {
namespace {

constexpr int64_t block_tokens = 64;

// Without its memory.
KVCache cache_of(const EncoderAttention& args) {
  return {nullptr, nullptr, args.query.type, args.num_kv_heads, args.head_dim, block_tokens};
}

int64_t block_bytes(const KVCache& cache) { return cache.num_kv_heads * cache.head_bytes(); }

void check_starts(const int32_t* starts, int64_t num_seqs, int64_t num_tokens) {
  if (starts[0] < 0) throw std::invalid_argument("query_start: begins below 0");
  for (int64_t seq = 0; seq < num_seqs; ++seq) {
    if (starts[seq + 1] < starts[seq]) throw std::invalid_argument("query_start: decreases");
  }
  if (starts[num_seqs] > num_tokens) throw std::invalid_argument("query_start: ends behind the step's tokens");
}

// Each sequence's tokens in blocks of its own.
struct Blocks {
  std::vector<int32_t> slots;  // by token; -1: nobody's
  std::vector<int32_t> tables;
  std::vector<int32_t> lengths;
  int64_t stride = 1;
  int64_t count = 0;

  Blocks(const int32_t* starts, int64_t num_seqs, int64_t num_tokens) : slots(num_tokens, -1), lengths(num_seqs) {
    for (int64_t seq = 0; seq < num_seqs; ++seq) {
      lengths[seq] = starts[seq + 1] - starts[seq];
      stride = std::max(stride, (lengths[seq] + block_tokens - 1) / block_tokens);
    }
    tables.resize(num_seqs * stride);
    for (int64_t seq = 0; seq < num_seqs; ++seq) {
      for (int64_t i = 0; i < lengths[seq]; ++i) {
        if (i % block_tokens == 0) tables[seq * stride + i / block_tokens] = static_cast<int32_t>(count++);
        slots[starts[seq] + i] = static_cast<int32_t>((count - 1) * block_tokens + i % block_tokens);
      }
    }
  }
};

}  // namespace

int64_t scratch_bytes(const EncoderAttention& args, int64_t num_seqs, int64_t num_tokens) {
  const int64_t most_blocks = num_tokens / block_tokens + num_seqs;  // each sequence's last is not full
  return 2 * most_blocks * block_bytes(cache_of(args));
}

void encoder_attention(const EncoderAttention& args, const int32_t* starts, int64_t num_seqs, int64_t num_tokens,
                       char* scratch) {
  check_starts(starts, num_seqs, num_tokens);
  const Blocks blocks(starts, num_seqs, num_tokens);
  KVCache cache = cache_of(args);
  cache.key = scratch;  // as it was left: what is nobody's is not read, as in any paged cache
  cache.value = scratch + blocks.count * block_bytes(cache);
  kv_write({args.key.data, args.value.data, args.key.stride, args.value.stride, args.query.type, blocks.slots.data(),
            num_tokens, cache});
  paged_attention({args.query.data, args.out.data, args.query.stride, args.out.stride, args.query.type,
                   blocks.tables.data(), blocks.stride, starts, blocks.lengths.data(), num_seqs,
                   args.query.columns / args.head_dim, 0, args.scale, cache, true});
}

void mean_rows(const Matrix& x, const int32_t* starts, const Matrix& out, int64_t num_seqs, int64_t num_tokens) {
  check_starts(starts, num_seqs, num_tokens);
  for_rows(num_seqs, elements_per_item, [&](int64_t first, int64_t last) {
    for (int64_t seq = first; seq < last; ++seq) {
      float* sums = static_cast<float*>(out.data) + seq * out.stride;
      std::fill(sums, sums + out.columns, 0.0f);
      for (int64_t row = starts[seq]; row < starts[seq + 1]; ++row) {
        if (x.type == Element::float32) {
          const float* from = static_cast<const float*>(x.data) + row * x.stride;
          for (int64_t i = 0; i < out.columns; ++i) sums[i] += from[i];
        } else {
          const uint16_t* from = static_cast<const uint16_t*>(x.data) + row * x.stride;
          for (int64_t i = 0; i < out.columns; ++i) sums[i] += widened(from[i]);
        }
      }
      const auto count = static_cast<float>(std::max(starts[seq + 1] - starts[seq], 1));
      for (int64_t i = 0; i < out.columns; ++i) sums[i] /= count;
    }
  });
}

}  // namespace core::cpu
