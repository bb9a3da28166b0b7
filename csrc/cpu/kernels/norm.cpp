// Root-mean-square norm, with or without the residual sum before it. A group's sum of squares is added up lane by lane,
// then over the lanes: the same order in every row.
#include "../vec/vec.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

template <typename T>
inline vfloat sum_of_squares(const T* x, int64_t width) {
  vfloat sum = {};
  for (int64_t i = 0; i < width; i += lanes) {
    const vfloat v = load_padded(x, i, width);
    sum = sum + v * v;
  }
  return sum;
}

// The order of Llama's own code: the normed number is rounded to the element type, then scaled.
template <typename T>
inline void normalise(const T* x, const T* weight, T* out, int64_t width, float eps) {
  const float squares = reduce(sum_of_squares(x, width), [](vfloat a, vfloat b) { return a + b; });
  const float factor = 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i += lanes) {
    const vfloat normed = rounded(load_padded(x, i, width) * factor, T{});
    store_padded(out, i, width, normed * load_padded(weight, i, width));
  }
}

template <typename T>
inline void add(const T* x, const T* residual, T* total, int64_t width) {
  for (int64_t i = 0; i < width; i += lanes) {
    store_padded(total, i, width, load_padded(x, i, width) + load_padded(residual, i, width));
  }
}

template <typename T>
void run(const Norm& args, int64_t first_row, int64_t last_row) {
  const auto* weight = static_cast<const T*>(args.weight);
  for (int64_t row = first_row; row < last_row; ++row) {
    const auto* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
    auto* out = static_cast<T*>(args.out.data) + row * args.out.stride;
    if (args.residual.data != nullptr) {
      auto* total = static_cast<T*>(args.total.data) + row * args.total.stride;
      add(x, static_cast<const T*>(args.residual.data) + row * args.residual.stride, total, args.x.columns);
      x = total;
    }
    for (int64_t group = 0; group < args.x.columns; group += args.width) {
      normalise(x + group, weight, out + group, args.width, args.eps);
    }
  }
}

}  // namespace

void norm(const Norm& args, int64_t first_row, int64_t last_row) noexcept {
  (args.x.type == Element::float32 ? run<float> : run<uint16_t>)(args, first_row, last_row);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
