// Programs, the thread pool, and the ops that have one form for all tiers.
#include "../program.hpp"

#include <atomic>
#include <cmath>
#include <stdexcept>
#include <thread>

#include "../threads.hpp"
#include "check.hpp"

namespace core::cpu::testing {
namespace {

TEST(a_program_runs_its_calls_in_order_with_the_steps_sizes) {
  Program program;
  std::vector<int64_t> seen;
  program.add([&](const StepSizes& sizes) { seen.push_back(sizes.num_tokens); });
  program.add([&](const StepSizes& sizes) { seen.push_back(sizes.num_seqs); });
  program.run({7, 3});
  program.run({1, 1});
  CHECK(seen == (std::vector<int64_t>{7, 3, 1, 1}), "the order of the calls");
}

// How often each of `count` items ran.
std::vector<int> runs_of_items(int64_t count) {
  std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
  const auto item = [](const void* data, int64_t index) noexcept {
    (*static_cast<std::vector<std::atomic<int>>*>(const_cast<void*>(data)))[static_cast<size_t>(index)] += 1;
  };
  parallel_for(count, item, &runs);
  return {runs.begin(), runs.end()};
}

TEST(each_item_of_a_loop_runs_once) {
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    for (const int64_t count : {0, 1, 2, 3, 1000}) {
      CHECK(runs_of_items(count) == std::vector<int>(static_cast<size_t>(count), 1), std::to_string(count));
    }
  }
  set_num_threads(1);
}

TEST(loops_of_several_callers_while_the_number_of_threads_changes) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&wrong] {
      for (int i = 0; i < 40; ++i) wrong += runs_of_items(50) != std::vector<int>(50, 1);
    });
  }
  for (int i = 0; i < 12; ++i) set_num_threads(1 + i % 4);
  for (std::thread& caller : callers) caller.join();
  set_num_threads(1);
  CHECK(wrong == 0, std::to_string(wrong) + " loops");
}

TEST(select_rows_copies) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    const Rows x = Rows::random(9, 35, type, 1);
    const Numbers<int32_t> indices({8, 0, 3, 3});
    Rows out(4, 35, type);
    select_rows({x.matrix(), indices.data(), out.matrix()}, 4);
    CHECK(out.intact(), "written beside the output");
    for (int64_t row = 0; row < 4; ++row) CHECK(out.same_bits(row, x, indices.data()[row]), std::to_string(row));
  }
}

TEST(a_token_outside_of_the_table_is_refused) {
  Rows table = Rows::random(1, 16, Element::float32, 2);  // one output's row: whatever it holds, it is not read
  const Weight weight{table.data(), Element::float32, 1, 1};
  Rows out(1, 1, Element::float32);
  for (const int32_t token : {-1, 1}) {
    const Numbers<int32_t> tokens({token});
    bool refused = false;
    try {
      embedding({tokens.data(), weight, out.matrix()}, 1);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused, "token " + std::to_string(token));
  }
}

// Libraries' sines are within 2 units in the last place of the angle's, rounded to float32 first.
TEST(rope_angles_are_sines_and_cosines) {
  const Numbers<int32_t> positions({0, 1, 2, 1023, 131071});
  const Numbers<float> frequencies({1.0f, 0.5f, 0.01f, 1e-4f, 0.3f});
  Rows out(5, 10, Element::float32);
  rope_angles(positions.data(), frequencies.data(), 0.7f, out.matrix(), 5);
  Rows wanted(5, 10, Element::float32);
  for (int64_t row = 0; row < 5; ++row) {
    for (int64_t i = 0; i < 5; ++i) {
      const double angle = static_cast<float>(positions.data()[row]) * frequencies.data()[i];
      wanted.set(row, i, static_cast<float>(std::cos(angle) * 0.7));
      wanted.set(row, 5 + i, static_cast<float>(std::sin(angle) * 0.7));
    }
  }
  expect_close(out, wanted, 0, 6, [](int64_t, int64_t) { return 1.0; }, "angles");
}

}  // namespace
}  // namespace core::cpu::testing
