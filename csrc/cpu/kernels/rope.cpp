// Rotary embedding: of each head, dimension i of the first half of those that rotate is paired with i of the second.
#include "../vec/vec.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

template <typename T>
inline void rotate(const T* x, const float* cosines, const float* sines, T* out, int64_t half) {
  for (int64_t i = 0; i < half; i += lanes) {
    const vfloat first = load_padded(x, i, half);
    const vfloat second = load_padded(x + half, i, half);
    const vfloat cosine = load_padded(cosines, i, half);
    const vfloat sine = load_padded(sines, i, half);
    const vfloat turned_first = first * cosine;
    const vfloat turned_second = second * cosine;
    store_padded(out, i, half, turned_first - second * sine);
    store_padded(out + half, i, half, turned_second + first * sine);
  }
}

template <typename T>
void run(const Rope& args, int64_t first_row, int64_t last_row) {
  const int64_t rotated = args.angles.columns;
  for (int64_t row = first_row; row < last_row; ++row) {
    const auto* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
    const auto* cosines = static_cast<const float*>(args.angles.data) + row * args.angles.stride;
    auto* out = static_cast<T*>(args.out.data) + row * args.out.stride;
    for (int64_t head = 0; head < args.x.columns; head += args.head_dim) {
      rotate(x + head, cosines, cosines + rotated / 2, out + head, rotated / 2);
      for (int64_t i = rotated; i < args.head_dim; ++i) out[head + i] = x[head + i];
    }
  }
}

}  // namespace

void rope(const Rope& args, int64_t first_row, int64_t last_row) noexcept {
  (args.x.type == Element::float32 ? run<float> : run<uint16_t>)(args, first_row, last_row);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
