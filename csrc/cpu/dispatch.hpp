// Runs the kernels over a batch: cuts the work into items and hands them to the threads.
#pragma once

#include "kernels/kernels.hpp"

namespace core::cpu {

void kv_write(const KVWrite& args);
void paged_attention(const PagedAttention& args);

}  // namespace core::cpu
