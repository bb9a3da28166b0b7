// Choosing tokens: the scalar tier's choices, bit by bit.
#include <cmath>

#include "../choose.hpp"
#include "check.hpp"

namespace core::cpu::testing {
namespace {

// A choice of each kind from rows of logits, in which every second one may be -inf.
std::vector<int64_t> chosen(const Rows& logits, uint64_t seed) {
  const double temperatures[] = {0.0, 1e-9, 0.3, 1.0, 5.0};
  const int32_t top_ks[] = {0, 1, 4, 50};
  const double top_ps[] = {1e-9, 0.5, 0.9, 1.0};
  const double min_ps[] = {0.0, 0.02, 1.0};
  constexpr int64_t count = 60;
  Random numbers(seed);
  std::vector<int32_t> rows, top_k;
  std::vector<double> temperature, top_p, min_p;
  std::vector<int64_t> key;
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back(static_cast<int32_t>(numbers.below(logits.rows())));
    temperature.push_back(temperatures[numbers.below(5)]);
    top_k.push_back(top_ks[numbers.below(4)]);
    top_p.push_back(top_ps[numbers.below(4)]);
    min_p.push_back(min_ps[numbers.below(3)]);
    key.push_back(numbers.below(int64_t{1} << 62));
  }
  const Numbers<int64_t> out(std::vector<int64_t>(count, -1));
  const Matrix matrix = logits.matrix();
  choose({{static_cast<const float*>(matrix.data), matrix.stride, matrix.columns}, count, rows.data(),
          temperature.data(), top_k.data(), top_p.data(), min_p.data(), key.data(), key.data(), key.data(),
          out.data()});
  return {out.data(), out.data() + count};
}

void check_choices(const Rows& logits, const std::string& what) {
  const std::vector<int64_t> found = chosen(logits, 1);
  const Reference scalar;
  const std::vector<int64_t> wanted = chosen(logits, 1);
  CHECK(found == wanted, what);
}

TEST(choices_are_the_scalar_tiers_bit_by_bit) {
  for (const int64_t vocab : {1, 7, 63, 64, 65, 1000, 5003}) {
    Rows logits = Rows::random(4, vocab, Element::float32, 11, 3.0f);
    const std::string size = std::to_string(vocab) + " tokens";
    check_choices(logits, size);
    for (int64_t i = 0; i < vocab; ++i) logits.set(1, i, std::round(logits.at(1, i)));
    for (int64_t i = 0; i < vocab; i += 2) logits.set(2, i, -INFINITY);
    logits.set(3, vocab / 2, NAN);
    check_choices(logits, size + ", some alike, some no numbers");
  }
}

TEST(logprobs_are_the_scalar_tiers) {
  constexpr int64_t rows = 3, vocab = 777, alternatives = 5;
  const Rows logits = Rows::random(rows, vocab, Element::float32, 12, 3.0f);
  const Matrix matrix = logits.matrix();
  const int32_t each[] = {0, 1, 2};
  const int64_t tokens[] = {5, 776, 64};
  const auto told = [&](std::vector<double>& values, std::vector<int64_t>& ids, std::vector<int64_t>& ranks) {
    values.resize(rows * (1 + alternatives));
    ids.resize(rows * (1 + alternatives));
    ranks.resize(rows);
    logprobs({{static_cast<const float*>(matrix.data), matrix.stride, vocab}, rows, alternatives, each, tokens,
              values.data(), ids.data(), ranks.data()});
  };
  std::vector<double> found, wanted;
  std::vector<int64_t> found_ids, wanted_ids, found_ranks, wanted_ranks;
  told(found, found_ids, found_ranks);
  const Reference scalar;
  told(wanted, wanted_ids, wanted_ranks);
  CHECK(found_ids == wanted_ids, "alternatives");
  CHECK(found_ranks == wanted_ranks, "ranks");
  for (size_t i = 0; i < found.size(); ++i) CHECK(std::abs(found[i] - wanted[i]) < 1e-9, std::to_string(i));
}

}  // namespace
}  // namespace core::cpu::testing
