// What choosing a token reads the whole row for. The rest is csrc/cpu/choose.cpp's, which looks at few groups.
#include "../vec/doubles.hpp"
#include "kernels.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr float lowest = -__builtin_inff();

// A group of `count` logits; what fills it up can neither win nor weigh.
const float* whole_group(const float* x, int64_t count, float (&filled)[choice_group]) {
  if (count == choice_group) return x;
  for (int64_t i = 0; i < choice_group; ++i) filled[i] = i < count ? x[i] : lowest;
  return filled;
}

// Whether any lane of a comparison is true.
inline bool any(vint64 condition) {
  int64_t each[wide_lanes];
  __builtin_memcpy(each, &condition, sizeof each);
  int64_t all = 0;
  for (const int64_t one : each) all |= one;
  return all != 0;
}

inline vdouble gaps(vdouble x, const ChoiceScale& scale) { return (x - scale.max) * scale.sharpness; }

}  // namespace

bool group_maxima(const float* row, int64_t count, float* maxima) noexcept {
  vint nan = {};
  float filled[choice_group];
  for (int64_t first = 0; first < count; first += choice_group) {
    const int64_t size = count - first < choice_group ? count - first : choice_group;
    const float* x = whole_group(row + first, size, filled);
    vfloat largest = broadcast(lowest);
#pragma GCC unroll 16
    for (int i = 0; i < choice_group; i += lanes) {
      const vfloat v = load(x + i);
      nan |= v != v;
      largest = maximum(v, largest);
    }
    maxima[first / choice_group] = reduce(largest, [](vfloat a, vfloat b) { return maximum(a, b); });
  }
  int32_t found = 0;
  for (int lane = 0; lane < lanes; ++lane) found |= nan[lane];
  return found != 0;
}

int64_t weigh(const float* x, int64_t count, const ChoiceScale& scale, float least, int64_t* weights) noexcept {
  float filled[choice_group];
  x = whole_group(x, count, filled);
  vint64 sum = {};
  for (int i = 0; i < choice_group; i += wide_lanes) {
    const vdouble v = load_doubles(x + i);
    const vdouble gap = maximum(gaps(v, scale), broadcast(-700.0));
    const vint64 kept = (vint64)(v >= broadcast(double{least}));
    const vint64 weight = nearest(exp_nonpositive(gap) * weight_unit) & kept;
    sum += weight;
    if (weights != nullptr) __builtin_memcpy(weights + i, &weight, sizeof weight);
  }
  int64_t total = 0;
  for (int lane = 0; lane < wide_lanes; ++lane) total += sum[lane];
  return total;
}

// A number u of 52 bits has the noise -log(-log u), and 1 - u < -log u. A token wins only if -log u < e^(gap - best), so
// only if 1 - u is less. That power of e is put up by taking the line between powers of 2, and by 2^-20.
uint64_t contenders(const float* x, int64_t count, const ChoiceScale& scale, float least, double best,
                    uint64_t state) noexcept {
  float filled[choice_group];
  x = whole_group(x, count, filled);
  vuint64 states = state - vuint64{};
  for (int lane = 0; lane < wide_lanes; ++lane) states[lane] += static_cast<uint64_t>(lane) * golden;
  vint64 may_win[choice_group / wide_lanes];
  vint64 all = {};
#pragma GCC unroll 4
  for (int i = 0; i < choice_group; i += wide_lanes) {
    const vdouble v = load_doubles(x + i);
    const vdouble power = (gaps(v, scale) - best) * 1.44269504088896340736;
    const vdouble bounded = minimum(maximum(power, broadcast(-1000.0)), broadcast(1.0));
    const vdouble exponent = (bounded + 1023.0) * 1048576.0 + two_to_52;
    const vdouble limit = (vdouble)(((vuint64)exponent + 1u) << 32);
    const vuint64 bits = ~mix(states) >> 12;  // 1 - u, within half a unit of them
    const vdouble rest = (vdouble)(bits | 0x4330000000000000u) - two_to_52;
    may_win[i / wide_lanes] = (vint64)(rest * (1.0 / two_to_52) <= limit) & (vint64)(v >= broadcast(double{least}));
    all |= may_win[i / wide_lanes];
    states += static_cast<uint64_t>(wide_lanes) * golden;
  }
  if (!any(all)) return 0;
  uint64_t found = 0;
  for (int i = 0; i < choice_group; ++i) {
    if (may_win[i / wide_lanes][i % wide_lanes] != 0) found |= uint64_t{1} << i;
  }
  return found;
}

}  // namespace CORE_ISA
}  // namespace core::cpu
