// Parallel loops on the OpenMP runtime that the process already has.
//
// The module is not linked against OpenMP. Torch brings its own libgomp (under a name that differs from wheel to
// wheel) and makes it global; a second runtime's threads would fight with it for the same cores. So `GOMP_parallel`,
// a symbol of the stable ABI that libgomp and LLVM's libomp both export, is looked up when more than one thread is
// first asked for. Why not a pool of our own: docs/decisions/003-native-threads.md.
#pragma once

#include <cstdint>

namespace core::cpu {

// Sets how many threads the kernels use, the caller's included; 1 at start. Throws std::invalid_argument if
// num_threads < 1, std::runtime_error if num_threads > 1 and the process has no OpenMP runtime.
void set_num_threads(int num_threads);
int num_threads();

using WorkItem = void (*)(const void* context, int64_t index) noexcept;

// Calls item(context, i) once for each i in [0, count). Threads take the next index from a shared counter: who computes
// an item is left to chance, so an item's result must depend on its index alone.
void parallel_for(int64_t count, WorkItem item, const void* context);

}  // namespace core::cpu
