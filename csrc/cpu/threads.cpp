#include "threads.hpp"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace core::cpu {
namespace {

// Rounds of waiting awake: some 50 µs, as a round takes 10 to 40 ns on the processors of today.
constexpr int spins = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#elif defined(__powerpc64__)
  asm volatile("or 27,27,27" ::: "memory");
#else
  std::this_thread::yield();
#endif
}

struct Loop {
  int64_t count;
  WorkItem item;
  const void* context;
};

// Keeps threads off the core that their caller runs on. The kernel likes to wake a thread on the waker's core; where the
// other cores have some work of their own, both then share that one for good, at half the speed.
class Placement {
 public:
  Placement() { known_ = sched_getaffinity(0, sizeof allowed_, &allowed_) == 0 && CPU_COUNT(&allowed_) > 1; }

  void keep_off_the_callers_core(std::vector<std::thread>& threads) {
    const int core = known_ ? sched_getcpu() : core_;
    if (core == core_ || !CPU_ISSET(static_cast<size_t>(core), &allowed_)) return;
    core_ = core;
    cpu_set_t others = allowed_;
    CPU_CLR(static_cast<size_t>(core), &others);
    for (std::thread& thread : threads) pthread_setaffinity_np(thread.native_handle(), sizeof others, &others);
  }

 private:
  cpu_set_t allowed_;  // to this process
  bool known_;
  int core_ = -1;  // the caller's, when last seen
};

class Pool {
 public:
  explicit Pool(int num_threads) {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  // One loop at a time: the caller holds the pool.
  void run(const Loop& loop) {
    placement_.keep_off_the_callers_core(workers_);
    loop_ = loop;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t opened = ((state_.load() >> generation_shift) + 1) << generation_shift | is_open;
    state_.store(opened);
    if (asleep_.load() > 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    take_items();
    state_.fetch_and(~is_open);
    wait_until_left();
  }

 private:
  // generation of the loop | whether it can be joined | threads of the pool inside it
  static constexpr int generation_shift = 32;
  static constexpr uint64_t is_open = uint64_t{1} << 31;
  static constexpr uint64_t inside = is_open - 1;

  void take_items() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < loop_.count;) loop_.item(loop_.context, i);
  }

  void work() {
    uint64_t done = 0;  // generation
    for (;;) {
      if (!wait_for_loop(done)) return;
      uint64_t state = state_.load();
      while ((state & is_open) != 0 && !state_.compare_exchange_weak(state, state + 1)) {
      }
      if ((state & is_open) == 0) {
        done = state >> generation_shift;  // it ended without this thread
        continue;
      }
      take_items();
      done = state >> generation_shift;
      if ((state_.fetch_sub(1) & (inside | is_open)) == 1 && caller_asleep_.load()) {
        const std::lock_guard<std::mutex> lock(mutex_);
        left_.notify_all();
      }
    }
  }

  bool is_new(uint64_t done) const { return state_.load() >> generation_shift != done; }

  // False when the pool is to end.
  bool wait_for_loop(uint64_t done) {
    for (int i = 0; i < spins; ++i) {
      if (is_new(done)) return true;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1);
    wake_.wait(lock, [&] { return stopping_ || is_new(done); });
    asleep_.fetch_sub(1);
    return is_new(done);
  }

  void wait_until_left() {
    for (int i = 0; i < spins; ++i) {
      if ((state_.load() & inside) == 0) return;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    caller_asleep_.store(true);
    left_.wait(lock, [&] { return (state_.load() & inside) == 0; });
    caller_asleep_.store(false);
  }

  Loop loop_{};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint64_t> state_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> caller_asleep_{false};
  std::mutex mutex_;  // of what follows
  std::condition_variable wake_;
  std::condition_variable left_;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
  Placement placement_;
};

// The pool with its lock. Never destroyed: at exit the threads sleep, and static objects they could need are left alone.
struct Threads {
  std::mutex mutex;
  Pool* pool = nullptr;
  std::atomic<int> count{1};
};

Threads*& threads() {
  static Threads* all = [] {
    // The parent's threads are not in the child, and its locks may be held by them for ever.
    pthread_atfork(nullptr, nullptr, [] {
      const int count = threads()->count.load();
      threads() = new Threads;
      threads()->count.store(count);
    });
    return new Threads;
  }();
  return all;
}

}  // namespace

void set_num_threads(int num_threads) {
  if (num_threads < 1) {
    throw std::invalid_argument("num_threads: must be at least 1, got " + std::to_string(num_threads));
  }
  Threads& all = *threads();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (num_threads == all.count.load()) return;
  delete all.pool;
  all.pool = nullptr;
  all.count.store(num_threads);
}

int num_threads() { return threads()->count.load(); }

void parallel_for(int64_t count, WorkItem item, const void* context) {
  Threads& all = *threads();
  if (count > 1 && all.count.load() > 1 && all.mutex.try_lock()) {
    const std::lock_guard<std::mutex> held(all.mutex, std::adopt_lock);
    if (all.pool == nullptr) all.pool = new Pool(all.count.load());
    all.pool->run({count, item, context});
    return;
  }
  for (int64_t i = 0; i < count; ++i) item(context, i);
}

}  // namespace core::cpu
