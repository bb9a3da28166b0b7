// Vectors of doubles and of 64-bit integers, half as many lanes as of floats: for sums and draws that must come out the
// same on every tier.
#pragma once

#include "vec.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr int wide_lanes = lanes / 2;

typedef double vdouble __attribute__((vector_size(lanes * 4)));
typedef int64_t vint64 __attribute__((vector_size(lanes * 4)));
typedef uint64_t vuint64 __attribute__((vector_size(lanes * 4)));
typedef float vhalf_floats __attribute__((vector_size(lanes * 2)));

constexpr double two_to_52 = 4503599627370496.0;  // from here on a double's low bits are an integer's

inline vdouble broadcast(double x) { return x - vdouble{}; }

inline vdouble load_doubles(const float* from) {
  return __builtin_convertvector(load_vector<vhalf_floats>(from), vdouble);
}

inline vdouble maximum(vdouble a, vdouble b) { return a > b ? a : b; }
inline vdouble minimum(vdouble a, vdouble b) { return a < b ? a : b; }

// The nearest integer, ties to even, of 0 <= x < 2^51.
inline vint64 nearest(vdouble x) { return (vint64)(x + two_to_52) & 0xfffffffffffff; }

// e^x for -700 <= x <= 0, within 2 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, and Taylor's polynomial in r.
inline vdouble exp_nonpositive(vdouble x) {
  const vdouble round = broadcast(1.5 * two_to_52);
  const vdouble shifted = round + x * 1.44269504088896340736;
  const vdouble n = shifted - round;
  vdouble r = x - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  constexpr double inverse_factorials[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                           1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,     1.0 / 2,
                                           1.0,            1.0};
  vdouble p = broadcast(1.0 / 479001600);
#pragma GCC unroll 12
  for (const double term : inverse_factorials) p = term + p * r;
  const vdouble power = (vdouble)(((vuint64)shifted + 1023u) << 52);  // the magic number's own bits leave at the top
  return p * power;
}

// One step of SplitMix64 (Steele, Lea & Flood 2014) behind its addition.
inline vuint64 mix(vuint64 x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace
}  // namespace CORE_ISA
}  // namespace core::cpu
