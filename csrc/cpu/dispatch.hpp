// Runs the kernels over a step's rows: cuts the work into items and hands them to the threads.
#pragma once

#include "kernels/kernels.hpp"

namespace core::cpu {

void kv_write(const KVWrite& args);
void linear(const Linear& args, int64_t rows);
void norm(const Norm& args, int64_t rows);
void silu_mul(const SiluMul& args, int64_t rows);
void rope(const Rope& args, int64_t rows);
void layer_norm(const LayerNorm& args, int64_t rows);
void activation(const Activation& args, int64_t rows);
void sum(const Sum& args, int64_t rows);

// Throws std::invalid_argument where a sequence does not fit its row of the block table.
void paged_attention(const PagedAttention& args);

// Bytes that `encoder_attention` needs for keys and values, at a cache line.
int64_t scratch_bytes(const EncoderAttention& args, int64_t num_seqs, int64_t num_tokens);

// Of sequences that are rows starts[s] : starts[s + 1]. Throw std::invalid_argument for starts that cannot be.
void encoder_attention(const EncoderAttention& args, const int32_t* starts, int64_t num_seqs, int64_t num_tokens,
                       char* scratch);
void mean_rows(const Matrix& x, const int32_t* starts, const Matrix& out, int64_t num_seqs, int64_t num_tokens);

// For benchmarks: reads a buffer with all threads, and returns its words or-ed; multiplies with all threads, `rounds`
// times in each, and returns how many FLOPs that were.
uint32_t read_memory(const void* from, int64_t bytes);
int64_t multiply(Element type, int64_t rounds);

// What follows has one form for all tiers: it copies, or is scalar.

// Both throw std::invalid_argument for a token id outside of the table.
void check_tokens(const int32_t* token_ids, int64_t rows, int64_t outputs);
void embedding(const Embedding& args, int64_t rows);
void select_rows(const SelectRows& args, int64_t rows);

// cos and sin of positions [rows] * inv_freq [out.columns / 2], times scale.
void rope_angles(const int32_t* positions, const float* inv_freq, float scale, const Matrix& out, int64_t rows);


void pack(const Packing& args, int64_t rows);
void unpack(const Packing& args, int64_t rows);

}  // namespace core::cpu
