// Layouts of GGUF's blocks are those of ggml-common.h (github.com/ggml-org/ggml); core/weights/gguf/quants.py decodes the
// same ones to floats.
#include "schemes.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace core::cpu {
namespace {

constexpr int block = 32;        // weights of most blocks, and of the groups of most K blocks
constexpr int super_block = 256;  // weights of a K block

float half_at(const uint8_t* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  return from_float16(half);
}

uint8_t rounded(float quant, float most) {
  return static_cast<uint8_t>(std::min(std::max(std::nearbyint(quant), 0.0f), most));  // 0 for not-a-number
}

// --- from floats ----------------------------------------------------------------------------------------------

// By absolute maximum, symmetric around 128. What is not finite makes the scale so, and with it the whole output.
void quantize_int8(const float* weights, int64_t inputs, const Quants& to) {
  float most = 0.0f;
  for (int64_t i = 0; i < inputs; ++i) {
    const float magnitude = std::fabs(weights[i]);
    if (!(magnitude <= most)) most = magnitude;
    if (std::isnan(most)) break;
  }
  const float scale = most / 127.0f;
  const float inverse = scale >= 0x1p-120f ? 1.0f / scale : 0.0f;
  to.scales[0] = scale;
  for (int64_t i = 0; i < inputs; ++i) to.quants[i] = rounded(weights[i] * inverse + 128.0f, 255.0f);
}

// By minimum and maximum of each group, as Q4_1: the scale and the offset are rounded to float16 first.
void quantize_int4(const float* weights, int64_t inputs, const Quants& to) {
  for (int64_t first = 0, group = 0; first < inputs; first += block, ++group) {
    const int64_t count = std::min<int64_t>(block, inputs - first);
    float least = weights[first], most = weights[first], total = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      least = std::min(least, weights[first + i]);
      most = std::max(most, weights[first + i]);
      total += weights[first + i] * 0.0f;  // not-a-number if one is, or is infinite
    }
    const float scale = from_float16(to_float16((most - least) / 15.0f)) + total;
    const float offset = from_float16(to_float16(least));
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    to.scales[group] = scale;
    to.offsets[group] = offset;
    for (int64_t i = 0; i < count; ++i) to.quants[first + i] = rounded((weights[first + i] - offset) * inverse, 15.0f);
  }
}

// --- blocks of 32 ---------------------------------------------------------------------------------------------

// Low halves are the first `count` quants, high halves the others.
void nibbles(const uint8_t* from, int count, uint8_t* to) {
  for (int i = 0; i < count; ++i) {
    to[i] = from[i] & 15;
    to[count + i] = from[i] >> 4;
  }
}

void fifth_bits(const uint8_t* from, uint8_t* to) {
  for (int i = 0; i < block; ++i) to[i] |= static_cast<uint8_t>((from[i / 8] >> (i % 8) & 1) << 4);
}

void decode_q4_0(const uint8_t* from, const Quants& to) {
  to.scales[0] = half_at(from);
  nibbles(from + 2, 16, to.quants);
}

void decode_q4_1(const uint8_t* from, const Quants& to) {
  to.scales[0] = half_at(from);
  to.offsets[0] = half_at(from + 2);
  nibbles(from + 4, 16, to.quants);
}

void decode_q5_0(const uint8_t* from, const Quants& to) {
  to.scales[0] = half_at(from);
  nibbles(from + 6, 16, to.quants);
  fifth_bits(from + 2, to.quants);
}

void decode_q5_1(const uint8_t* from, const Quants& to) {
  to.scales[0] = half_at(from);
  to.offsets[0] = half_at(from + 2);
  nibbles(from + 8, 16, to.quants);
  fifth_bits(from + 4, to.quants);
}

void decode_q8_0(const uint8_t* from, const Quants& to) {
  to.scales[0] = half_at(from);
  for (int i = 0; i < block; ++i) to.quants[i] = from[2 + i] ^ 0x80;  // two's complement to what 128 is zero of
}

// --- K blocks -------------------------------------------------------------------------------------------------

// Eight scales and minima of six bits: bytes 0-3 and 4-7 hold the first four of each, and in their top bits the top of
// the others, whose low bits are the halves of bytes 8-11.
void k_scales(const uint8_t* from, const Quants& to) {
  const float scale = half_at(from), minimum = half_at(from + 2);
  const uint8_t* packed = from + 4;
  for (int i = 0; i < 4; ++i) {
    to.scales[i] = scale * static_cast<float>(packed[i] & 63);
    to.offsets[i] = -minimum * static_cast<float>(packed[4 + i] & 63);
    to.scales[4 + i] = scale * static_cast<float>((packed[8 + i] & 15) | packed[i] >> 6 << 4);
    to.offsets[4 + i] = -minimum * static_cast<float>(packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4);
  }
}

void decode_q4_k(const uint8_t* from, const Quants& to) {
  k_scales(from, to);
  for (int run = 0; run < 4; ++run) nibbles(from + 16 + run * block, block, to.quants + run * 2 * block);
}

void decode_q5_k(const uint8_t* from, const Quants& to) {
  k_scales(from, to);
  for (int run = 0; run < 4; ++run) nibbles(from + 48 + run * block, block, to.quants + run * 2 * block);
  for (int i = 0; i < super_block; ++i) {
    to.quants[i] |= static_cast<uint8_t>((from[16 + i % block] >> (i / block) & 1) << 4);
  }
}

// Two halves of 128: 64 bytes of low nibbles and then high ones, and two upper bits of each from 32 bytes.
void decode_q6_k(const uint8_t* from, const Quants& to) {
  const float scale = half_at(from + 208);
  for (int i = 0; i < 16; ++i) to.scales[i] = scale * static_cast<float>(static_cast<int8_t>(from[192 + i]));
  for (int half = 0; half < 2; ++half) {
    uint8_t* quants = to.quants + half * 128;
    nibbles(from + half * 64, 64, quants);
    const uint8_t* upper = from + 128 + half * 32;
    for (int i = 0; i < 128; ++i) quants[i] |= static_cast<uint8_t>((upper[i % 32] >> (i / 32 * 2) & 3) << 4);
  }
}

}  // namespace

const std::vector<Scheme>& schemes() {
  // What the user has quantised takes activations of 8 bits; what comes so loses nothing more.
  static const std::vector<Scheme> all{
      {"int8", {8, 0, false, 128, 8}, quantize_int8, nullptr, 1, 0},
      {"int4", {4, 32, true, 0, 8}, quantize_int4, nullptr, block, 0},
      {"q8_0", {8, 32, false, 128, 16}, nullptr, decode_q8_0, block, 34},
      {"q4_0", {4, 32, false, 8, 16}, nullptr, decode_q4_0, block, 18},
      {"q4_1", {4, 32, true, 0, 16}, nullptr, decode_q4_1, block, 20},
      {"q5_0", {8, 32, false, 16, 16}, nullptr, decode_q5_0, block, 22},
      {"q5_1", {8, 32, true, 0, 16}, nullptr, decode_q5_1, block, 24},
      {"q4_k", {4, 32, true, 0, 16}, nullptr, decode_q4_k, super_block, 144},
      {"q5_k", {8, 32, true, 0, 16}, nullptr, decode_q5_k, super_block, 176},
      {"q6_k", {8, 16, false, 32, 16}, nullptr, decode_q6_k, super_block, 210},
  };
  return all;
}

const Scheme& scheme(const std::string& name) {
  std::string names;
  for (const Scheme& each : schemes()) {
    if (name == each.name) return each;
    names += (names.empty() ? "" : ", ") + std::string(each.name);
  }
  throw std::invalid_argument("scheme: '" + name + "' is not one of " + names);
}

float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude < 0x400u) {  // subnormal: units of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const uint32_t bits = sign | (magnitude >= 0x7c00u ? 0x7f800000u | magnitude << 13 : (magnitude << 13) + (112u << 23));
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint16_t to_float16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(magnitude)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  // Units in the last place are 2^-24 for subnormals and up to 2^-14, then as many as the exponent says.
  const int exponent = std::max(magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude), -14);
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + static_cast<int>(units));
}

}  // namespace core::cpu
