#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {

const Kernels kernels{kv_write, attend};

}  // namespace CORE_ISA
}  // namespace core::cpu
