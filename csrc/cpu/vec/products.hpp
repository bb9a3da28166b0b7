// Products of activations with the words of a packed weight (kernels.hpp: a word is one float, or two bfloat16 of
// consecutive inputs). Besides vec.hpp and the matrix-unit files this is where instructions are called by name.
//
// `accumulate` adds one word's products to `lanes` outputs' sums, in a fixed order: that is all that a sum's rounding
// depends on. The order and the rounding differ between tiers.
#pragma once

#include "vec.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

template <typename T>
struct Words;

template <>
struct Words<float> {
  using Weights = vfloat;
  using Input = vfloat;
  static constexpr int per_word = 1;

  static Weights weights(const uint32_t* from) { return load_vector<vfloat>(from); }
  static Input input(const float* x) { return broadcast(*x); }
  static Input last_input(const float* x) { return broadcast(*x); }
  static vfloat accumulate(vfloat sum, Weights w, Input x) { return sum + w * x; }
};

#if defined(__AVX512BF16__)

template <>
struct Words<uint16_t> {
  using Weights = __m512bh;
  using Input = __m512bh;
  static constexpr int per_word = 2;

  static Weights weights(const uint32_t* from) { return (__m512bh)load_vector<vuint>(from); }
  static Input both(uint32_t pair) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)); }
  static Input input(const uint16_t* x) {
    uint32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return both(pair);
  }
  static Input last_input(const uint16_t* x) { return both(*x); }
  static vfloat accumulate(vfloat sum, Weights w, Input x) { return (vfloat)_mm512_dpbf16_ps((__m512)sum, w, x); }
};

#elif defined(CORE_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

// One BFDOT a word. How it rounds the sum of two products depends on the processor (FEAT_EBF16), not on anything else.
template <>
struct Words<uint16_t> {
  using Weights = bfloat16x8_t;
  using Input = bfloat16x8_t;
  static constexpr int per_word = 2;

  static Weights weights(const uint32_t* from) { return (bfloat16x8_t)load_vector<vuint>(from); }
  static Input both(uint32_t pair) { return (bfloat16x8_t)vdupq_n_u32(pair); }
  static Input input(const uint16_t* x) {
    uint32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return both(pair);
  }
  static Input last_input(const uint16_t* x) { return both(*x); }
  static vfloat accumulate(vfloat sum, Weights w, Input x) { return (vfloat)vbfdotq_f32((float32x4_t)sum, w, x); }
};

#else

template <>
struct Words<uint16_t> {
  struct Weights {
    vfloat first;
    vfloat second;
  };
  using Input = Weights;
  static constexpr int per_word = 2;

  static Weights weights(const uint32_t* from) {
    const vuint words = load_vector<vuint>(from);
    return {(vfloat)(words << 16), (vfloat)(words & 0xffff0000u)};
  }
  static Input input(const uint16_t* x) { return {broadcast(x[0]), broadcast(x[1])}; }
  static Input last_input(const uint16_t* x) { return {broadcast(x[0]), vfloat{}}; }
  static vfloat accumulate(vfloat sum, Weights w, Input x) {
    sum = sum + w.first * x.first;
    return sum + w.second * x.second;
  }
};

#endif

}  // namespace
}  // namespace CORE_ISA
}  // namespace core::cpu
