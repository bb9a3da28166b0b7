// What a machine can do at most: reading memory, and products with everything in registers. For benchmarks.
#include "../vec/dots.hpp"
#include "../vec/products.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr int chains = lanes == 16 ? 24 : 8;  // as many sums as the linear kernel has

// What keeps the compiler from folding the sums: the operand's register class by its name on each architecture.
template <typename Vector>
inline void keep(Vector& sum) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(sum));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(sum));
#elif defined(__powerpc64__)
  asm volatile("" : "+wa"(sum));
#else
  asm volatile("" : "+m"(sum));
#endif
}

// Of a quantised weight and activations of 8 bits.
struct Bytes : Quads<int8_t> {
  static constexpr int per_word = 4;
  static Weights weights(const uint32_t* from) { return Quads::weights(load_vector<vuint>(from)); }
  static Input input(const int16_t* from) { return Quads::input(reinterpret_cast<const char*>(from)); }
};

template <typename W, typename T, typename Sum>
int64_t multiply(int64_t rounds) {
  const uint32_t zeros[16] = {};
  const T input[W::per_word] = {};
  const typename W::Weights weights = W::weights(zeros);
  Sum sums[chains] = {};
  for (int64_t i = 0; i < rounds; ++i) {
    const typename W::Input in = W::input(input);
#pragma GCC unroll 32
    for (int chain = 0; chain < chains; ++chain) sums[chain] = W::accumulate(sums[chain], weights, in);
#pragma GCC unroll 32
    for (int chain = 0; chain < chains; ++chain) keep(sums[chain]);
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
  if (type == Element::int8) return multiply<Bytes, int16_t, vint>(rounds);
  if (type == Element::float32) return multiply<Words<float>, float, vfloat>(rounds);
  return multiply<Words<uint16_t>, uint16_t, vfloat>(rounds);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
