// Quantised weights: packing them, reading them back, and running the ops that take them.
#pragma once

#include "kernels/quantized.hpp"
#include "schemes.hpp"

namespace core::cpu {

// Rows of activations that are quantised at a time, and go through the weight while they lie in the cache.
constexpr int64_t quantized_rows = 192;

// Bytes that `linear_quantized` needs to quantise activations in, at a cache line.
int64_t scratch_bytes(const QuantizedWeight& weight);

// `args.quantized` says where; it may be used again by the next call.
void linear_quantized(const QuantizedLinear& args, int64_t rows);

struct QuantizedEmbedding {
  const int32_t* token_ids;
  QuantizedWeight weight;
  Matrix out;
};

// Throws std::invalid_argument for a token id outside of the table.
void embedding_quantized(const QuantizedEmbedding& args, int64_t rows);

// Quantises rows of floats to rows `first` … of the weight.
void quantize(const QuantizedWeight& weight, const Scheme& scheme, int64_t first, int64_t rows, const Matrix& source);

// The same from blocks, rows of `row_bytes` one after the other.
void pack_blocks(const QuantizedWeight& weight, const Scheme& scheme, int64_t first, int64_t rows, const uint8_t* blocks);

// Rows `first` … of the weight as floats.
void dequantize(const QuantizedWeight& weight, int64_t first, int64_t rows, const Matrix& target);

}  // namespace core::cpu
