// Parallel loops on a pool of threads of the kernels' own (docs/decisions/008-cpu-thread-pool.md).
//
// A loop belongs to its caller, who takes items until there are none; threads of the pool that are awake join in. A
// thread that is asleep or has lost its core is not waited for unless it holds an item. Between loops the threads stay
// awake for tens of microseconds, long enough for the next loop of a step, then sleep.
#pragma once

#include <cstdint>

namespace core::cpu {

// Sets how many threads the loops use, the caller's included; 1 at start. Waits for a loop that runs. Throws
// std::invalid_argument if num_threads < 1.
void set_num_threads(int num_threads);
int num_threads();

using WorkItem = void (*)(const void* context, int64_t index) noexcept;

// Calls item(context, i) once for each i in [0, count). Threads take the next index from a shared counter: who computes
// an item is left to chance, so an item's result must depend on its index alone. A loop that is begun while another
// one runs, from another thread, is run by its caller alone. In the child of a fork the threads are started anew.
void parallel_for(int64_t count, WorkItem item, const void* context);

}  // namespace core::cpu
