// Weights of 8 and 4 bits, and the activations that they are multiplied with.
//
// A weight's quants are unsigned bytes. An activation's are signed, in 8 bits or in 16: the former are multiplied at twice
// the rate, the latter are as good as bfloat16. Sums within a group are exact, in int32.
#pragma once

#include "kernels.hpp"

namespace core::cpu {

struct Quantization {
  int bits;      // of a quant: 8 or 4
  int group;     // inputs that share a scale: 32, 16, or 0 for all inputs of an output
  bool offsets;  // a weight is scale * quant + offset; without them scale * (quant - zero)
  int zero;
  int activation_bits;  // 8 or 16
};

constexpr int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// [outputs, inputs], packed as panels of 16 outputs (kernels.hpp). A panel is first a head for each group, of 16 scales
// and 16 offsets (where the form has them) in float16, or one of 16 scales in float32 where an output has only one; then
// words of four inputs' quants, as [words, 16 outputs]. In 4 bits two words share their bytes: the first has the low
// halves. Heads and words begin at cache lines. What fills up groups, words and panels is zero.
struct QuantizedWeight {
  char* data;
  Element type;  // what it reads as, and what it is multiplied with
  Quantization form;
  int64_t outputs;
  int64_t inputs;

  int64_t panels() const { return (outputs + panel_outputs - 1) / panel_outputs; }
  // Inputs whose activations share a scale; their weights do too, where an output has more than one.
  int64_t group_inputs() const { return form.group == 0 ? 32 : form.group; }
  int64_t groups() const { return (inputs + group_inputs() - 1) / group_inputs(); }
  int64_t heads() const { return form.group == 0 ? 1 : groups(); }
  int64_t head_bytes() const { return form.group == 0 || form.offsets ? 64 : 32; }
  int64_t heads_bytes() const { return round_up(heads() * head_bytes(), 64); }
  int64_t panel_bytes() const { return heads_bytes() + groups() * group_inputs() * panel_outputs * form.bits / 8; }
  int64_t bytes() const { return panels() * panel_bytes(); }
};

struct ActivationHead {
  float scale;
  float sum;      // of the quants, times scale: what an offset is multiplied with
  int32_t start;  // of the dot product: -zero times the sum of the quants
  int32_t unused;
};

// Rows of activations, quantised by absolute maximum in the weight's groups: for each group a head, then its quants,
// filled up with zeros, as the tier lays them down.
struct Activations {
  char* data;
  int64_t group_bytes;
  int64_t row_bytes;
};

constexpr int64_t activation_bytes(int64_t group_inputs) { return sizeof(ActivationHead) + 2 * round_up(group_inputs, 16); }

inline Activations activations(char* data, const QuantizedWeight& weight) {
  const int64_t group_bytes = activation_bytes(weight.group_inputs());
  return {data, group_bytes, round_up(weight.groups() * group_bytes, 64)};
}

struct QuantizedLinear {
  Matrix x;
  QuantizedWeight weight;
  const void* bias;  // [outputs] of the weight's type, or null
  Matrix out;
  Activations quantized;  // x
};

}  // namespace core::cpu
