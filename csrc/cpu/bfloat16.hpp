// bfloat16 outside of the kernels, one number at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace core::cpu {

inline float widened(uint16_t bfloat16) {
  const uint32_t bits = uint32_t{bfloat16} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To nearest even; a not-a-number stays one.
inline uint16_t narrowed(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace core::cpu
