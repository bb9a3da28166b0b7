// The schemes that weights are quantised by: how floats, or the blocks of a GGUF file, become quants and scales.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/quantized.hpp"

namespace core::cpu {

// One output's quants, a byte each, and its groups' scales and offsets.
struct Quants {
  uint8_t* quants;
  float* scales;
  float* offsets;
};

struct Scheme {
  const char* name;
  Quantization form;
  // From `inputs` floats, or null: weights come in blocks.
  void (*quantize)(const float* weights, int64_t inputs, const Quants& to);
  // From a block of block_bytes with block_inputs weights, or null: weights come as floats.
  void (*decode)(const uint8_t* block, const Quants& to);
  int64_t block_inputs;
  int64_t block_bytes;
};

const std::vector<Scheme>& schemes();

// Throws std::invalid_argument naming the schemes there are.
const Scheme& scheme(const std::string& name);

// IEEE 754 binary16, rounded to nearest even. A not-a-number stays one.
float from_float16(uint16_t half);
uint16_t to_float16(float value);

}  // namespace core::cpu
