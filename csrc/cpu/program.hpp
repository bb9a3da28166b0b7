// A recorded program as a list of kernel calls with their addresses, run by one call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace core::cpu {

// What a step's symbolic sizes are.
struct StepSizes {
  int64_t num_tokens;
  int64_t num_seqs;
};

// How many rows an op has at a step: as many as it has tokens, or sequences.
enum class Rows { tokens, seqs };

inline int64_t count(const StepSizes& sizes, Rows rows) {
  return rows == Rows::tokens ? sizes.num_tokens : sizes.num_seqs;
}

class Program {
 public:
  using Call = std::function<void(const StepSizes&)>;

  Program() = default;
  Program(const Program&) = delete;  // calls hold its address
  Program& operator=(const Program&) = delete;

  void add(Call call) { calls_.push_back(std::move(call)); }

  // Runs the calls in order. What one throws ends the step.
  void run(const StepSizes& sizes) const {
    for (const Call& call : calls_) call(sizes);
  }

  // Memory at a cache line that any call may use while it runs: the largest that was asked for, which a call whose need
  // the step's sizes decide does as it runs.
  void reserve_scratch(int64_t bytes) {
    scratch_.resize(std::max(scratch_.size(), static_cast<size_t>(bytes) + cache_line));
  }
  char* scratch() {
    const auto at = reinterpret_cast<uintptr_t>(scratch_.data());
    return scratch_.data() + (cache_line - at % cache_line) % cache_line;
  }

 private:
  static constexpr size_t cache_line = 64;

  std::vector<Call> calls_;
  std::vector<char> scratch_;
};

}  // namespace core::cpu
