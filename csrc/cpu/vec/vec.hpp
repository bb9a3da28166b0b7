// Vectors of floats as wide as the tier's registers, in GCC's and Clang's portable vector extension.
//
// Rounding is the same wherever a function of this header is inlined: products are only ever added to an
// accumulator (`acc + a * b`), which the compiler always contracts to a fused multiply-add where the tier has one.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__) && !defined(CORE_PORTABLE)
#define CORE_NEON
#include <arm_neon.h>
#elif defined(__VSX__) && defined(__LITTLE_ENDIAN__) && !defined(CORE_PORTABLE)
#define CORE_VSX
#include <altivec.h>
#undef vector
#undef pixel
#undef bool
#endif

namespace core::cpu {
namespace CORE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

// Vectors that the registers hold.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int registers = 32;
#elif defined(__VSX__)
constexpr int registers = 64;
#else
constexpr int registers = 16;
#endif

typedef float vfloat __attribute__((vector_size(lanes * 4)));
typedef int32_t vint __attribute__((vector_size(lanes * 4)));
typedef uint32_t vuint __attribute__((vector_size(lanes * 4)));
typedef uint16_t vhalf __attribute__((vector_size(lanes * 2)));
typedef int8_t vbyte __attribute__((vector_size(lanes)));

inline vfloat broadcast(float x) { return x - vfloat{}; }

// A bfloat16 in every lane; as an integer, since POWER keeps a single float as a double.
inline vfloat broadcast(uint16_t x) { return (vfloat)((uint32_t{x} << 16) - vuint{}); }

template <typename Vector>
inline Vector load_vector(const void* from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

inline vfloat load(const float* from) { return load_vector<vfloat>(from); }

// GCC 12 converts 16 lanes in two halves where one instruction does it; it warns of the forms without a mask.
#if defined(__AVX512F__)
inline vuint extend(vhalf v) { return (vuint)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)v); }
inline vhalf truncate(vuint v) { return (vhalf)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v); }
inline vfloat widen(vhalf v) { return (vfloat)(extend(v) << 16); }
#elif defined(CORE_NEON)
inline vuint extend(vhalf v) { return (vuint)vmovl_u16((uint16x4_t)v); }
inline vhalf truncate(vuint v) { return (vhalf)vmovn_u32((uint32x4_t)v); }
inline vfloat widen(vhalf v) { return (vfloat)vshll_n_u16((uint16x4_t)v, 16); }
#elif defined(CORE_VSX)
// A vector of 8 bytes has no register of its own: it is put into the first half of one.
typedef uint16_t vhalves __attribute__((vector_size(16)));
typedef uint64_t vlong __attribute__((vector_size(16)));

inline vhalves in_register(vhalf v) { return (vhalves)vlong{(uint64_t)v, 0}; }
inline vuint extend(vhalf v) { return (vuint)vec_mergeh(in_register(v), vhalves{}); }
inline vhalf truncate(vuint v) { return (vhalf)((vlong)vec_pack(v, v))[0]; }
inline vfloat widen(vhalf v) { return (vfloat)vec_mergeh(vhalves{}, in_register(v)); }
#else
inline vuint extend(vhalf v) { return __builtin_convertvector(v, vuint); }
inline vhalf truncate(vuint v) { return __builtin_convertvector(v, vhalf); }
inline vfloat widen(vhalf v) { return (vfloat)(extend(v) << 16); }
#endif

inline vfloat load(const uint16_t* from) { return widen(load_vector<vhalf>(from)); }

// Small integers, as floats.
#if defined(__AVX512F__)
inline vfloat load_integers(const int8_t* from) {
  const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xffff, load_vector<__m128i>(from));
  return (vfloat)_mm512_maskz_cvtepi32_ps(0xffff, wide);
}
#else
inline vfloat load_integers(const int8_t* from) { return __builtin_convertvector(load_vector<vbyte>(from), vfloat); }
#endif

inline void store(float* to, vfloat v) { __builtin_memcpy(to, &v, sizeof v); }

// The upper halves, rounded to nearest even as from_float below; a NaN stays one.
inline vuint upper_halves(vfloat v) {
  const vuint bits = (vuint)v;
  const vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vuint quiet_nan = (bits >> 16) | 0x40u;
  const vuint is_nan = (vuint)((bits & 0x7fffffffu) > 0x7f800000u);
  return (rounded & ~is_nan) | (quiet_nan & is_nan);
}

#if defined(CORE_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
inline vhalf narrow(vfloat v) { return (vhalf)vcvt_bf16_f32((float32x4_t)v); }
#else
inline vhalf narrow(vfloat v) { return truncate(upper_halves(v)); }
#endif

inline void store(uint16_t* to, vfloat v) {
  const vhalf half = narrow(v);
  __builtin_memcpy(to, &half, sizeof half);
}

// The first `count` < lanes elements; zeros behind them.
template <typename T>
inline vfloat load_partial(const T* from, int64_t count) {
  T padded_copy[lanes] = {};
  for (int64_t i = 0; i < count; ++i) padded_copy[i] = from[i];
  return load(padded_copy);
}

// Lanes `at …` of a row of `count` elements; zeros behind its end.
template <typename T>
inline vfloat load_padded(const T* row, int64_t at, int64_t count) {
  return at + lanes <= count ? load(row + at) : load_partial(row + at, count - at);
}

// The counterpart: writes nothing behind the row's end.
template <typename T>
inline void store_padded(T* row, int64_t at, int64_t count, vfloat v) {
  if (at + lanes <= count) {
    store(row + at, v);
    return;
  }
  T whole[lanes];
  store(whole, v);
  for (int64_t i = at; i < count; ++i) row[i] = whole[i - at];
}

// To the element type and back: where a result is rounded before it is used again.
inline vfloat rounded(vfloat v, float) { return v; }

inline vfloat rounded(vfloat v, uint16_t) { return (vfloat)(upper_halves(v) << 16); }

inline vfloat select(vint condition, vfloat yes, vfloat no) {
  return (vfloat)((condition & (vint)yes) | (~condition & (vint)no));
}

inline vfloat maximum(vfloat a, vfloat b) { return a > b ? a : b; }

inline vint lane_numbers() {
  vint numbers;
  for (int lane = 0; lane < lanes; ++lane) numbers[lane] = lane;
  return numbers;
}

template <typename Vector, typename Combine>
inline auto reduce(Vector v, Combine combine) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    v = combine(v, __builtin_shuffle(v, lane_numbers() ^ distance));
  }
  return v[0];
}

inline float to_float(float x) { return x; }

inline float to_float(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

inline void from_float(float x, float& to) { to = x; }

// Round to nearest even; a NaN stays one.
inline void from_float(float x, uint16_t& to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  to = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// e^x for x <= 0, within 2 ulp; 0 where the result would be subnormal, NaN for NaN. Cephes' expf: x = n ln 2 + r,
// |r| <= ln 2 / 2, and a polynomial in r.
inline vfloat exp_nonpositive(vfloat x) {
  const vfloat round = broadcast(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the rounded integer
  const vfloat shifted = round + x * 1.44269504088896341f;
  const vfloat n = shifted - round;
  vfloat r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vfloat p = broadcast(1.9875691500e-4f);
  p = 1.3981999507e-3f + p * r;
  p = 8.3334519073e-3f + p * r;
  p = 4.1665795894e-2f + p * r;
  p = 1.6666665459e-1f + p * r;
  p = 5.0000001201e-1f + p * r;
  const vfloat squared = r * r;
  p = r + p * squared;
  p = p + 1.0f;
  const vfloat power = (vfloat)(((vuint)shifted + 127u) << 23);  // the magic number's own bits leave at the top
  return select(x < -87.3f, vfloat{}, p * power);
}

}  // namespace
}  // namespace CORE_ISA
}  // namespace core::cpu
