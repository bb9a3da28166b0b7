// What encoders have beside matrices and attention: layer norm of a residual sum, activations, sums. Each lane of a row
// is computed alike wherever it lies, and sums over a row are in one order.
#include "../vec/vec.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

// --- layer norm -----------------------------------------------------------------------------------------------

// Lanes `at …` of the sum of two rows.
template <typename T>
inline vfloat total(const T* x, const T* residual, int64_t at, int64_t width) {
  return load_padded(x, at, width) + load_padded(residual, at, width);
}

inline float added_up(vfloat sums) {
  return reduce(sums, [](vfloat a, vfloat b) { return a + b; });
}

template <typename T>
inline float mean_of(const T* x, const T* residual, int64_t width) {
  vfloat sum = {};
  for (int64_t i = 0; i < width; i += lanes) sum = sum + total(x, residual, i, width);
  return added_up(sum) / static_cast<float>(width);
}

template <typename T>
inline float variance_of(const T* x, const T* residual, int64_t width, float mean) {
  vfloat sum = {};
  for (int64_t i = 0; i < width; i += lanes) {
    const vfloat distance = total(x, residual, i, width) - mean;
    const vint inside = lane_numbers() < static_cast<int32_t>(width - i < lanes ? width - i : lanes);
    sum = sum + select(inside, distance * distance, vfloat{});
  }
  return added_up(sum) / static_cast<float>(width);
}

template <typename T>
void norm_rows(const LayerNorm& args, int64_t first_row, int64_t last_row) {
  const auto *weight = static_cast<const T*>(args.weight), *bias = static_cast<const T*>(args.bias);
  const int64_t width = args.x.columns;
  for (int64_t row = first_row; row < last_row; ++row) {
    const auto* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
    const auto* residual = static_cast<const T*>(args.residual.data) + row * args.residual.stride;
    auto* out = static_cast<T*>(args.out.data) + row * args.out.stride;
    const float mean = mean_of(x, residual, width);
    const float factor = 1.0f / __builtin_sqrtf(variance_of(x, residual, width, mean) + args.eps);
    for (int64_t i = 0; i < width; i += lanes) {
      const vfloat normed = (total(x, residual, i, width) - mean) * factor;
      store_padded(out, i, width, load_padded(bias, i, width) + normed * load_padded(weight, i, width));
    }
  }
}

// --- activations ----------------------------------------------------------------------------------------------

inline vfloat magnitude(vfloat x) { return select(x < 0.0f, -x, x); }

// tanh within 2 ulp: Cephes' tanhf, a polynomial near 0 and the exponential of what is not positive beyond.
inline vfloat tanh_of(vfloat x) {
  const vfloat size = magnitude(x), squared = x * x;
  vfloat p = broadcast(-5.70498872745e-3f);
  p = 2.06390887954e-2f + p * squared;
  p = -5.37397155531e-2f + p * squared;
  p = 1.33314422036e-1f + p * squared;
  p = -3.33332819422e-1f + p * squared;
  const vfloat near = x + p * squared * x;
  const vfloat power = exp_nonpositive(size * -2.0f);
  const vfloat far = (1.0f - power) / (power + 1.0f);
  return select(size < 0.625f, near, select(x < 0.0f, -far, far));
}

// x Phi(x), Phi by erfc as in Abramowitz & Stegun 7.1.26, whose error is at most 1.5e-7 of |x|.
inline vfloat gelu(vfloat x) {
  const vfloat scaled = magnitude(x) * 0.70710678118654752f;
  const vfloat t = 1.0f / (1.0f + scaled * 0.3275911f);
  vfloat p = broadcast(1.061405429f);
  p = -1.453152027f + p * t;
  p = 1.421413741f + p * t;
  p = -0.284496736f + p * t;
  p = 0.254829592f + p * t;
  const vfloat tail = p * t * exp_nonpositive(-(scaled * scaled));  // 1 - erf(|x| / sqrt 2)
  return x * 0.5f * select(x < 0.0f, tail, 2.0f - tail);
}

inline vfloat gelu_tanh(vfloat x) {
  const vfloat inner = (x + x * x * x * 0.044715f) * 0.79788456080286536f;
  return x * 0.5f * (tanh_of(inner) + 1.0f);
}

inline vfloat activated(vfloat x, ActivationKind kind) {
  if (kind == ActivationKind::gelu) return gelu(x);
  if (kind == ActivationKind::gelu_tanh) return gelu_tanh(x);
  if (kind == ActivationKind::tanh) return tanh_of(x);
  return select(x < 0.0f, vfloat{}, x);  // relu, of which NaN stays NaN
}

template <typename T>
void activate_rows(const Activation& args, int64_t first_row, int64_t last_row) {
  const int64_t width = args.x.columns;
  for (int64_t row = first_row; row < last_row; ++row) {
    const auto* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
    auto* out = static_cast<T*>(args.out.data) + row * args.out.stride;
    for (int64_t i = 0; i < width; i += lanes) {
      store_padded(out, i, width, activated(load_padded(x, i, width), args.kind));
    }
  }
}

template <typename T>
void add_rows(const Sum& args, int64_t first_row, int64_t last_row) {
  const int64_t width = args.x.columns;
  for (int64_t row = first_row; row < last_row; ++row) {
    const auto* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
    const auto* y = static_cast<const T*>(args.y.data) + row * args.y.stride;
    auto* out = static_cast<T*>(args.out.data) + row * args.out.stride;
    for (int64_t i = 0; i < width; i += lanes) store_padded(out, i, width, total(x, y, i, width));
  }
}

}  // namespace

void layer_norm(const LayerNorm& args, int64_t first_row, int64_t last_row) noexcept {
  (args.x.type == Element::float32 ? norm_rows<float> : norm_rows<uint16_t>)(args, first_row, last_row);
}

void activation(const Activation& args, int64_t first_row, int64_t last_row) noexcept {
  (args.x.type == Element::float32 ? activate_rows<float> : activate_rows<uint16_t>)(args, first_row, last_row);
}

void sum(const Sum& args, int64_t first_row, int64_t last_row) noexcept {
  (args.x.type == Element::float32 ? add_rows<float> : add_rows<uint16_t>)(args, first_row, last_row);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
