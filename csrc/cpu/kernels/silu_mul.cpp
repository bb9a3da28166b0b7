// SwiGLU's product: silu(gate) rounded to the element type, times up.
#include "../vec/vec.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

// x / (1 + e^-x), by the exponential of what is not positive: it cannot overflow.
inline vfloat silu(vfloat x) {
  const vint negative = x < 0.0f;
  const vfloat power = exp_nonpositive(select(negative, x, -x));
  return x * select(negative, power, broadcast(1.0f)) / (power + 1.0f);
}

template <typename T>
void run(const SiluMul& args, int64_t first_row, int64_t last_row) {
  const int64_t width = args.out.columns;
  for (int64_t row = first_row; row < last_row; ++row) {
    const auto* gate = static_cast<const T*>(args.gate_up.data) + row * args.gate_up.stride;
    const auto* up = gate + width;
    auto* out = static_cast<T*>(args.out.data) + row * args.out.stride;
    for (int64_t i = 0; i < width; i += lanes) {
      store_padded(out, i, width, rounded(silu(load_padded(gate, i, width)), T{}) * load_padded(up, i, width));
    }
  }
}

}  // namespace

void silu_mul(const SiluMul& args, int64_t first_row, int64_t last_row) noexcept {
  (args.out.type == Element::float32 ? run<float> : run<uint16_t>)(args, first_row, last_row);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
