// Runs every test on the tiers that the command line names, or on every tier of this processor. A named tier that cannot
// run here is an error, and not a test left out.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"

namespace core::cpu::testing {
namespace {

struct Entry {
  const char* name;
  void (*body)();
};

std::vector<Entry>& tests() {
  static std::vector<Entry> all;
  return all;
}

// What runs: fail() tells of it.
std::string running_tier;
const char* running_test = "";
int failures = 0;

void run_tier(const std::string& tier) {
  set_isa(tier);
  running_tier = tier;
  const int before = failures;
  for (const Entry& test : tests()) {
    running_test = test.name;
    test.body();
  }
  std::printf("%-14s %zu tests, %d failures\n", tier.c_str(), tests().size(), failures - before);
}

}  // namespace

Test::Test(const char* name, void (*body)()) { tests().push_back({name, body}); }

void fail(const std::string& what) {
  ++failures;
  std::printf("%s on %s: %s\n", running_test, running_tier.c_str(), what.c_str());
}

}  // namespace core::cpu::testing

int main(int count, char** arguments) {
  using namespace core::cpu;
  std::vector<std::string> names(arguments + 1, arguments + count);
  if (names.empty()) names = available_isas();
  try {
    for (const std::string& tier : names) testing::run_tier(tier);
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return testing::failures == 0 ? 0 : 1;
}
