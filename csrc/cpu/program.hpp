// A recorded program as a list of kernel calls with their addresses, run by one call.
#pragma once

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

class Program {
 public:
  using Call = std::function<void(const StepSizes&)>;

  void add(Call call) { calls_.push_back(std::move(call)); }

  // Runs the calls in order. What one throws ends the step.
  void run(const StepSizes& sizes) const {
    for (const Call& call : calls_) call(sizes);
  }

 private:
  std::vector<Call> calls_;
};

}  // namespace core::cpu
