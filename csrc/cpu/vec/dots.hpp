// Dot products of bytes: in each lane of 32 bits, four unsigned bytes of a weight times four signed ones of an
// activation, added to an int32. Exact in every form.
#pragma once

#include "vec.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace core::cpu {
namespace CORE_ISA {
namespace {

inline vint broadcast_int(int32_t x) { return x - vint{}; }

inline int32_t four_bytes(const int8_t* x) {
  int32_t bytes;
  __builtin_memcpy(&bytes, x, sizeof bytes);
  return bytes;
}

#if defined(__AVX512VNNI__)

struct Quads {
  using Weights = vuint;
  using Input = vint;

  static Weights weights(vuint bytes) { return bytes; }
  static Input input(const int8_t* x) { return broadcast_int(four_bytes(x)); }
  static vint accumulate(vint sum, Weights w, Input x) {
    return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
  }
};

#elif defined(__AVX512BW__) || defined(__AVX2__)

// As int16: multiplying bytes adds pairs of products with saturation.
#if defined(__AVX512BW__)
inline vint multiply_pairs(vint a, vint b) { return (vint)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#else
inline vint multiply_pairs(vint a, vint b) { return (vint)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#endif

struct Quads {
  struct Weights {
    vint even;
    vint odd;
  };
  using Input = Weights;
  typedef int16_t vshort __attribute__((vector_size(lanes * 4)));

  static Weights weights(vuint bytes) {
    return {(vint)(bytes & 0x00ff00ffu), (vint)((bytes >> 8) & 0x00ff00ffu)};
  }
  static Input input(const int8_t* x) {
    const vshort bytes = (vshort)broadcast_int(four_bytes(x));
    return {(vint)((bytes << 8) >> 8), (vint)(bytes >> 8)};
  }
  static vint accumulate(vint sum, Weights w, Input x) {
    return sum + (multiply_pairs(w.even, x.even) + multiply_pairs(w.odd, x.odd));
  }
};

#else

struct Quads {
  struct Weights {
    vint bytes[4];
  };
  struct Input {
    int32_t bytes[4];
  };

  static Weights weights(vuint bytes) {
    return {{(vint)(bytes & 0xffu), (vint)((bytes >> 8) & 0xffu), (vint)((bytes >> 16) & 0xffu), (vint)(bytes >> 24)}};
  }
  static Input input(const int8_t* x) { return {{x[0], x[1], x[2], x[3]}}; }
  static vint accumulate(vint sum, const Weights& w, const Input& x) {
    for (int i = 0; i < 4; ++i) sum += w.bytes[i] * x.bytes[i];
    return sum;
  }
};

#endif

#if defined(__AVX512F__)
inline vfloat to_floats(vint v) { return (vfloat)_mm512_maskz_cvtepi32_ps(0xffff, (__m512i)v); }
#else
inline vfloat to_floats(vint v) { return __builtin_convertvector(v, vfloat); }
#endif

// The low byte of each lane.
inline void store_bytes(int8_t* to, vint v) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v);
#else
  const vbyte bytes = __builtin_convertvector(v, vbyte);
#endif
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

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
