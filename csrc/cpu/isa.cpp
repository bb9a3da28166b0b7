#include "isa.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "kernels/kernels.hpp"

#ifdef __aarch64__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace core::cpu {
namespace {

struct Tier {
  const char* name;
  const Kernels* kernels;
  bool supported;
};

const std::vector<Tier>& tiers() {
  static const std::vector<Tier> all = [] {
    std::vector<Tier> list{{"scalar", &scalar::kernels, true}};
#ifdef __x86_64__
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    list.push_back({"avx2", &avx2::kernels, avx2});
    list.push_back({"avx512", &avx512::kernels, avx512});
    const bool dots = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    list.push_back({"avx512bf16", &avx512bf16::kernels, avx512 && dots});
#elif defined(__aarch64__)
    const bool dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
    const unsigned long bf16 = HWCAP2_I8MM | HWCAP2_BF16;
    list.push_back({"neon", &neon::kernels, true});
    list.push_back({"neon_dotprod", &neon_dotprod::kernels, dotprod});
    list.push_back({"neon_bf16", &neon_bf16::kernels, dotprod && (getauxval(AT_HWCAP2) & bf16) == bf16});
#elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
    list.push_back({"vsx", &vsx::kernels, true});
#endif
    return list;
  }();
  return all;
}

const Tier& find(const std::string& name, const char* setting) {
  std::string names;
  for (const Tier& tier : tiers()) {
    if (!tier.supported) continue;
    if (name == tier.name) return tier;
    names += (names.empty() ? "" : ", ") + std::string(tier.name);
  }
  throw std::invalid_argument(std::string(setting) + ": '" + name + "' is not available on this processor; it has: " +
                              names);
}

const Tier& preferred() {
  if (const char* name = std::getenv("CORE_CPU_ISA"); name != nullptr && *name != '\0') {
    return find(name, "CORE_CPU_ISA");
  }
  return find(available_isas().back(), "isa");
}

std::atomic<const Tier*>& current() {
  static std::atomic<const Tier*> tier{&preferred()};
  return tier;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Tier& tier : tiers()) {
    if (tier.supported) names.emplace_back(tier.name);
  }
  return names;
}

std::string isa() { return current().load()->name; }

void set_isa(const std::string& name) { current().store(&find(name, "isa")); }

const Kernels& kernels() { return *current().load()->kernels; }

}  // namespace core::cpu
