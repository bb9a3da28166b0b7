#include "threads.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

namespace core::cpu {
namespace {

using GompParallel = void (*)(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);

std::atomic<int> thread_count{1};

GompParallel openmp() {
  static std::atomic<GompParallel> found{nullptr};
  GompParallel parallel = found.load(std::memory_order_acquire);
  if (parallel == nullptr) {
    parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    found.store(parallel, std::memory_order_release);
  }
  return parallel;
}

struct Loop {
  int64_t count;
  WorkItem item;
  const void* context;
  std::atomic<int64_t> next{0};
};

void run_items(void* data) {
  Loop& loop = *static_cast<Loop*>(data);
  for (int64_t i; (i = loop.next.fetch_add(1, std::memory_order_relaxed)) < loop.count;) loop.item(loop.context, i);
}

}  // namespace

void set_num_threads(int num_threads) {
  if (num_threads < 1) {
    throw std::invalid_argument("num_threads: must be at least 1, got " + std::to_string(num_threads));
  }
  if (num_threads > 1 && openmp() == nullptr) {
    throw std::runtime_error(
        "num_threads: more than one thread needs an OpenMP runtime, and this process has loaded none; "
        "import torch, which brings one, before setting the number of threads");
  }
  thread_count.store(num_threads, std::memory_order_relaxed);
}

int num_threads() { return thread_count.load(std::memory_order_relaxed); }

void parallel_for(int64_t count, WorkItem item, const void* context) {
  Loop loop{count, item, context};
  const auto threads = static_cast<unsigned>(std::min<int64_t>(num_threads(), count));
  if (threads > 1) {
    openmp()(run_items, &loop, threads, 0);
  } else {
    run_items(&loop);
  }
}

}  // namespace core::cpu
