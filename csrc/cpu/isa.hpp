// The instruction-set tiers that the kernels are compiled for, and the choice among them at run time.
#pragma once

#include <string>
#include <vector>

namespace core::cpu {

struct Kernels;  // kernels/kernels.hpp

// Tiers that this binary holds and this processor can run, best last. The first is scalar everywhere: the kernels as
// they are for a processor of which nothing is known but its baseline.
//   x86-64   avx2 (x86-64-v3), avx512 (x86-64-v4), avx512bf16 (with dot products of bfloat16 and of bytes)
//   aarch64  neon, neon_dotprod (with dot products of bytes), neon_bf16 (with those of bfloat16, and mixed signs)
//   ppc64le  vsx
std::vector<std::string> available_isas();

// The tier in use: the best available one, or what CORE_CPU_ISA or set_isa names.
std::string isa();

// Chooses a tier by name. Throws std::invalid_argument naming the available ones if `name` is not among them.
void set_isa(const std::string& name);

const Kernels& kernels();

}  // namespace core::cpu
