// What ends every product with a weight: its sums to their place in the output.
#pragma once

#include "../vec/vec.hpp"
#include "kernels.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

// Sums [rows, width] of the outputs from `output` on, with the bias. Args: Linear or QuantizedLinear.
template <typename T, typename Out, typename Args>
__attribute__((noinline)) void write_out(const Args& args, const float* sums, int64_t row, int64_t rows, int64_t output,
                                         int64_t width) {
  const auto* bias = static_cast<const T*>(args.bias);
  auto* out = static_cast<Out*>(args.out.data) + row * args.out.stride;
  const int64_t outputs = args.weight.outputs;
  for (int64_t r = 0; r < rows; ++r, sums += width, out += args.out.stride) {
    for (int64_t i = 0; i < width && output + i < outputs; i += lanes) {
      vfloat sum = load(sums + i);
      if (bias != nullptr) sum = sum + load_padded(bias, output + i, outputs);
      store_padded(out, output + i, outputs, sum);
    }
  }
}

}  // namespace
}  // namespace CORE_ISA
}  // namespace core::cpu
