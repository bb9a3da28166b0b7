// Dot products of small integers: in each lane of 32 bits, four unsigned bytes of a weight times four signed integers of
// an activation, added to an int32. Exact in every form.
#pragma once

#include "vec.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace core::cpu {
namespace CORE_ISA {
namespace {

inline vint broadcast_int(int32_t x) { return x - vint{}; }

// Four bytes, in every lane.
inline vint broadcast_bytes(const char* from) {
  int32_t bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return broadcast_int(bytes);
}

// Of activations T, int8_t (-127 to 127) or int16_t (-32639 to 32639). `store` lays `lanes` of them down as `input` takes
// them four by four, `input_bytes` each.
template <typename T>
struct Quads;

#if defined(__AVX512VNNI__)

inline vint multiply_bytes(vint sum, vuint w, vint x) {
  return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}

template <>
struct Quads<int8_t> {
  using Weights = vuint;
  using Input = vint;
  using Sum = vint;
  static constexpr int input_bytes = 4;

  static Weights weights(vuint bytes) { return bytes; }
  static Input input(const char* x) { return broadcast_bytes(x); }
  static Sum sum_from(int32_t start) { return broadcast_int(start); }
  static Sum accumulate(Sum sum, Weights w, Input x) { return multiply_bytes(sum, w, x); }
  static vint total(Sum sum) { return sum; }
  static void store(char* to, vint quants) {
    const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)quants);
    __builtin_memcpy(to, &bytes, sizeof bytes);
  }
};

// As high * 256 + low, both signed bytes: the high ones of four, then the low ones.
template <>
struct Quads<int16_t> {
  using Weights = vuint;
  struct Input {
    vint high;
    vint low;
  };
  using Sum = Input;
  static constexpr int input_bytes = 8;

  static Weights weights(vuint bytes) { return bytes; }
  static Input input(const char* x) { return {broadcast_bytes(x), broadcast_bytes(x + 4)}; }
  static Sum sum_from(int32_t start) { return {vint{}, broadcast_int(start)}; }
  static Sum accumulate(Sum sum, Weights w, Input x) {
    return {multiply_bytes(sum.high, w, x.high), multiply_bytes(sum.low, w, x.low)};
  }
  static vint total(Sum sum) { return (sum.high << 8) + sum.low; }
  static void store(char* to, vint quants) {
    const vint halves = ((quants + 128) & 0xff00) | (quants & 0xff);
    const __m128i order = _mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, 9, 11, 13, 15, 8, 10, 12, 14);
    const __m256i bytes = _mm256_shuffle_epi8((__m256i)truncate((vuint)halves), _mm256_broadcastsi128_si256(order));
    __builtin_memcpy(to, &bytes, sizeof bytes);
  }
};

#elif defined(__AVX512BW__) || defined(__AVX2__)

// All as int16, since multiplying bytes adds pairs of products with saturation.
#if defined(__AVX512BW__)
inline vint multiply_pairs(vint a, vint b) { return (vint)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#else
inline vint multiply_pairs(vint a, vint b) { return (vint)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#endif

template <typename T>
struct Quads {
  struct Weights {
    vint even;
    vint odd;
  };
  using Input = Weights;
  using Sum = vint;
  static constexpr int input_bytes = 8;

  static Weights weights(vuint bytes) {
    return {(vint)(bytes & 0x00ff00ffu), (vint)((bytes >> 8) & 0x00ff00ffu)};
  }
  static Input input(const char* x) { return {broadcast_bytes(x), broadcast_bytes(x + 4)}; }
  static Sum sum_from(int32_t start) { return broadcast_int(start); }
  static Sum accumulate(Sum sum, Weights w, Input x) {
    return sum + (multiply_pairs(w.even, x.even) + multiply_pairs(w.odd, x.odd));
  }
  static vint total(Sum sum) { return sum; }
  static void store(char* to, vint quants) {
    vhalf order;  // the first and the third of four, then the others
    for (int i = 0; i < lanes; ++i) order[i] = static_cast<uint16_t>(i / 4 * 4 + i % 2 * 2 + i / 2 % 2);
    const vhalf halves = __builtin_shuffle(truncate((vuint)quants), order);
    __builtin_memcpy(to, &halves, sizeof halves);
  }
};

#else

template <typename T>
struct Quads {
  struct Weights {
    vint bytes[4];
  };
  struct Input {
    int16_t halves[4];
  };
  using Sum = vint;
  static constexpr int input_bytes = 8;

  static Weights weights(vuint bytes) {
    return {{(vint)(bytes & 0xffu), (vint)((bytes >> 8) & 0xffu), (vint)((bytes >> 16) & 0xffu), (vint)(bytes >> 24)}};
  }
  static Input input(const char* x) {
    Input four;
    __builtin_memcpy(&four, x, sizeof four);
    return four;
  }
  static Sum sum_from(int32_t start) { return broadcast_int(start); }
  static Sum accumulate(Sum sum, const Weights& w, const Input& x) {
    for (int i = 0; i < 4; ++i) sum += w.bytes[i] * int32_t{x.halves[i]};
    return sum;
  }
  static vint total(Sum sum) { return sum; }
  static void store(char* to, vint quants) {
    const vhalf halves = truncate((vuint)quants);
    __builtin_memcpy(to, &halves, sizeof halves);
  }
};

#endif

#if defined(__AVX512F__)
inline vfloat to_floats(vint v) { return (vfloat)_mm512_maskz_cvtepi32_ps(0xffff, (__m512i)v); }
#else
inline vfloat to_floats(vint v) { return __builtin_convertvector(v, vfloat); }
#endif

// float16 (IEEE 754 binary16) to float, exactly.
inline vfloat load_float16(const uint16_t* from) {
  const vhalf halves = load_vector<vhalf>(from);
#if defined(__AVX512F__)
  return (vfloat)_mm512_maskz_cvtph_ps(0xffff, (__m256i)halves);
#elif defined(__F16C__)
  return (vfloat)_mm256_cvtph_ps((__m128i)halves);
#else
  const vuint bits = extend(halves);
  const vfloat magnitude = (vfloat)((bits & 0x7fffu) << 13) * 0x1p112f;  // the exponents' biases are 112 apart
  const vuint special = (vuint)((bits & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (vfloat)((vuint)magnitude | special | ((bits & 0x8000u) << 16));
#endif
}

}  // namespace
}  // namespace CORE_ISA
}  // namespace core::cpu
