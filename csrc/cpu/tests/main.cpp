// Runs every test on every tier of this processor. Names on the command line are the tiers that it must have: a tier
// that cannot run here is then an error, and not a test left out.
#include <algorithm>
#include <cstdio>
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

bool has_all(int count, char** names) {
  const std::vector<std::string> available = available_isas();
  bool all = true;
  for (int i = 0; i < count; ++i) {
    if (std::find(available.begin(), available.end(), names[i]) != available.end()) continue;
    std::printf("the tier %s cannot run on this processor\n", names[i]);
    all = false;
  }
  return all;
}

}  // namespace

Test::Test(const char* name, void (*body)()) { tests().push_back({name, body}); }

void fail(const std::string& what) {
  ++failures;
  std::printf("%s on %s: %s\n", running_test, running_tier.c_str(), what.c_str());
}

}  // namespace core::cpu::testing

int main(int count, char** arguments) {
  using namespace core::cpu::testing;
  if (!has_all(count - 1, arguments + 1)) return 1;
  for (const std::string& tier : core::cpu::available_isas()) run_tier(tier);
  return failures == 0 ? 0 : 1;
}
