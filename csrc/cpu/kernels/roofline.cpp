// What a machine can do at most: reading memory, and products with everything in registers. For benchmarks.
#include "../vec/products.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr int chains = lanes == 16 ? 24 : 8;  // as many sums as the linear kernel has

template <typename T>
int64_t multiply(int64_t rounds) {
  using W = Words<T>;
  const uint32_t ones[16] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80,
                             0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80,
                             0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  const T one[2] = {};
  vfloat sums[chains] = {};
  typename W::Weights weights = W::weights(ones);
  for (int64_t i = 0; i < rounds; ++i) {
    const typename W::Input input = W::input(one);
#pragma GCC unroll 32
    for (int chain = 0; chain < chains; ++chain) sums[chain] = W::accumulate(sums[chain], weights, input);
#pragma GCC unroll 32
    for (int chain = 0; chain < chains; ++chain) asm volatile("" : "+v"(sums[chain]));
  }
  return rounds * chains * lanes * W::per_word * 2;
}

}  // namespace

uint32_t read_words(const uint32_t* from, int64_t words) noexcept {
  vuint seen[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= words; i += 4 * lanes) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) seen[part] |= load_vector<vuint>(from + i + part * lanes);
  }
  const vuint all = seen[0] | seen[1] | seen[2] | seen[3];
  uint32_t any = 0;
  for (int lane = 0; lane < lanes; ++lane) any |= all[lane];
  return any;
}

int64_t multiply_words(Element type, int64_t rounds) noexcept {
  return (type == Element::float32 ? multiply<float> : multiply<uint16_t>)(rounds);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
