#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {

const Kernels kernels{kv_write,     attend,        attend_split,     merge_splits, linear,     quantize_rows,
                      linear_quantized, norm,      silu_mul,         rope,         layer_norm, activation,
                      sum,          group_maxima,  weigh,
                      contenders,   read_words,    multiply_words};

}  // namespace CORE_ISA
}  // namespace core::cpu
