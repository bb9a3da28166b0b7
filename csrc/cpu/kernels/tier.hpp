// What one tier's kernel sources define for its table.
#pragma once

#include "kernels.hpp"

namespace core::cpu {
namespace CORE_ISA {

void kv_write(const KVWrite& args, int64_t first_token, int64_t last_token) noexcept;
void attend(const PagedAttention& args, const AttentionItem& item) noexcept;

}  // namespace CORE_ISA
}  // namespace core::cpu
