// What one tier's kernel sources define for its table.
#pragma once

#include "kernels.hpp"

namespace core::cpu {
namespace CORE_ISA {

void kv_write(const KVWrite& args, int64_t first_token, int64_t last_token) noexcept;
void attend(const PagedAttention& args, const AttentionItem& item) noexcept;
void attend_split(const PagedAttention& args, const AttentionItem& item, int64_t split, float* state) noexcept;
void merge_splits(const PagedAttention& args, const AttentionItem& item, float* states) noexcept;
void linear(const Linear& args, const LinearTile& tile) noexcept;
void quantize_rows(const QuantizedLinear& args, int64_t first_row, int64_t last_row) noexcept;
void linear_quantized(const QuantizedLinear& args, const LinearTile& tile) noexcept;
void norm(const Norm& args, int64_t first_row, int64_t last_row) noexcept;
void silu_mul(const SiluMul& args, int64_t first_row, int64_t last_row) noexcept;
void rope(const Rope& args, int64_t first_row, int64_t last_row) noexcept;
void layer_norm(const LayerNorm& args, int64_t first_row, int64_t last_row) noexcept;
void activation(const Activation& args, int64_t first_row, int64_t last_row) noexcept;
void sum(const Sum& args, int64_t first_row, int64_t last_row) noexcept;
bool group_maxima(const float* row, int64_t count, float* maxima) noexcept;
int64_t weigh(const float* x, int64_t count, const ChoiceScale& scale, float least, int64_t* weights) noexcept;
uint64_t contenders(const float* x, int64_t count, const ChoiceScale& scale, float least, double best,
                    uint64_t state) noexcept;
uint32_t read_words(const uint32_t* from, int64_t words) noexcept;
int64_t multiply_words(Element type, int64_t rounds) noexcept;

}  // namespace CORE_ISA
}  // namespace core::cpu
