#include "choose.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "isa.hpp"
#include "kernels/kernels.hpp"
#include "parallel.hpp"

namespace core::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr double no_weight = -29.0;   // gaps below have a weight that rounds to 0
constexpr double most_noise = 36.75;  // of 52 bits

// --- a row ----------------------------------------------------------------------------------------------------

// A row, and the largest logit of each of its groups: it is read once for those, and after that only where it matters.
class Row {
 public:
  Row(const float* logits, int64_t count) : logits_(logits), count_(count), maxima_(groups_of(count)) {
    has_nan_ = kernels().group_maxima(logits, count, maxima_.data());
    max_ = *std::max_element(maxima_.begin(), maxima_.end());
  }

  int64_t count() const { return count_; }
  int64_t groups() const { return static_cast<int64_t>(maxima_.size()); }
  const float* group(int64_t index) const { return logits_ + index * choice_group; }
  int64_t group_size(int64_t index) const { return std::min<int64_t>(choice_group, count_ - index * choice_group); }
  float group_max(int64_t index) const { return maxima_[index]; }
  float operator[](int64_t index) const { return logits_[index]; }
  float max() const { return max_; }

  // Whether probabilities can be made of it: no NaN, no +inf, and something that is not -inf.
  bool is_finite() const { return !has_nan_ && std::isfinite(max_); }

  // The first of the largest; a NaN is larger than all numbers.
  int64_t best() const {
    if (has_nan_) return std::find_if(logits_, logits_ + count_, [](float x) { return x != x; }) - logits_;
    const int64_t first = (std::find(maxima_.begin(), maxima_.end(), max_) - maxima_.begin()) * choice_group;
    return std::find(logits_ + first, logits_ + count_, max_) - logits_;
  }

  // Calls function(index, logit) for each logit of at least `least`, in order.
  template <typename Function>
  void at_least(float least, const Function& function) const {
    for (int64_t group = 0; group < groups(); ++group) {
      if (maxima_[group] < least) continue;
      const int64_t first = group * choice_group;
      for (int64_t i = first; i < first + group_size(group); ++i) {
        if (logits_[i] >= least) function(i, logits_[i]);
      }
    }
  }

  // The k-th largest logit, 1 <= k <= count. As many groups have a maximum that is not less than their k-th largest.
  float largest(int64_t k) const {
    float bound = -infinity;
    if (k <= groups()) {
      std::vector<float> maxima = maxima_;
      std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<>());
      bound = maxima[k - 1];
    }
    std::vector<float> found;
    at_least(bound, [&](int64_t, float x) { found.push_back(x); });
    std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), std::greater<>());
    return found[k - 1];
  }

 private:
  static size_t groups_of(int64_t count) { return static_cast<size_t>((count + choice_group - 1) / choice_group); }

  const float* logits_;
  int64_t count_;
  std::vector<float> maxima_;
  float max_;
  bool has_nan_;
};

double gap(float logit, const ChoiceScale& scale) { return (double{logit} - scale.max) * scale.sharpness; }

// Calls function(group) for the groups that have a weight in what is at least `least`.
template <typename Function>
void each_with_weight(const Row& row, const ChoiceScale& scale, float least, const Function& function) {
  for (int64_t group = 0; group < row.groups(); ++group) {
    if (row.group_max(group) >= least && gap(row.group_max(group), scale) >= no_weight) function(group);
  }
}

// --- what is left to choose from ------------------------------------------------------------------------------

// Floats as integers in the same order, -0 just below 0; its own inverse but for the type.
int32_t order_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits < 0 ? bits ^ INT32_MAX : bits;
}

float float_of(int32_t order) {
  const int32_t bits = order < 0 ? order ^ INT32_MAX : order;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The least logit whose gap is at least log(min_p). Found by halving, since around 0 there are a thousand million floats
// with one and the same gap.
float min_p_cut(double min_p, const ChoiceScale& scale) {
  const double floor = std::log(min_p);
  int64_t below = order_of(-infinity), cut = order_of(static_cast<float>(scale.max));
  while (cut - below > 1) {
    const int64_t middle = below + (cut - below) / 2;
    (gap(float_of(static_cast<int32_t>(middle)), scale) >= floor ? cut : below) = middle;
  }
  return float_of(static_cast<int32_t>(cut));
}

struct Weighted {
  float logit;
  int64_t weight;
};

// How far below the largest logit each of a group lies, in sixteenths of a gap.
constexpr int num_depths = 16 * 29 + 1;  // what lies further has no weight

void depths_of(const Row& row, int64_t group, const ChoiceScale& scale, int32_t (&depths)[choice_group]) {
  const float* x = row.group(group);
  const int64_t size = row.group_size(group);
  const float largest = row.max();
  const auto scaled = static_cast<float>(16 * scale.sharpness);
  for (int64_t i = 0; i < size; ++i) {
    depths[i] = static_cast<int32_t>(std::min((largest - x[i]) * scaled, static_cast<float>(num_depths - 1)));
  }
}

// The weights of the logits at each depth.
std::vector<int64_t> weights_by_depth(const Row& row, const ChoiceScale& scale, float least) {
  std::vector<int64_t> sums(num_depths, 0);
  int64_t weights[choice_group];
  int32_t depths[choice_group];
  each_with_weight(row, scale, least, [&](int64_t group) {
    kernels().weigh(row.group(group), row.group_size(group), scale, least, weights);
    depths_of(row, group, scale, depths);
    for (int64_t i = 0; i < row.group_size(group); ++i) sums[depths[i]] += weights[i];
  });
  return sums;
}

// The logits at one depth.
std::vector<Weighted> at_depth(const Row& row, const ChoiceScale& scale, float least, int32_t depth) {
  std::vector<Weighted> found;
  int64_t weights[choice_group];
  int32_t depths[choice_group];
  each_with_weight(row, scale, least, [&](int64_t group) {
    const float* x = row.group(group);
    const int64_t size = row.group_size(group);
    depths_of(row, group, scale, depths);
    if (std::find(depths, depths + size, depth) == depths + size) return;
    kernels().weigh(x, size, scale, least, weights);
    for (int64_t i = 0; i < size; ++i) {
      if (depths[i] == depth && x[i] >= least) found.push_back({x[i], weights[i]});
    }
  });
  return found;
}

// In descending order, the last logit before which the weights are less than `target` together. Halves what it may be
// among until it is alone, so that nothing is sorted as a whole.
float last_within(std::vector<Weighted> found, double target, int64_t before) {
  auto low = found.begin(), high = found.end();
  while (high - low > 1) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, [](const Weighted& a, const Weighted& b) { return a.logit > b.logit; });
    int64_t until = before;
    for (auto each = low; each != middle; ++each) until += each->weight;
    if (static_cast<double>(until) < target) {
      low = middle;
      before = until;
    } else {
      high = middle;
    }
  }
  return low->logit;
}

// The least logit of the nucleus (Holtzman et al. 2020) among those that are at least `least`: first how deep it lies,
// then which one it is of those that lie so deep.
float nucleus_cut(const Row& row, const ChoiceScale& scale, float least, double top_p) {
  const std::vector<int64_t> sums = weights_by_depth(row, scale, least);
  const double target = top_p * static_cast<double>(std::accumulate(sums.begin(), sums.end(), int64_t{0}));
  int64_t before = 0;
  int32_t depth = 0;
  while (static_cast<double>(before + sums[depth]) < target) before += sums[depth++];
  return last_within(at_depth(row, scale, least, depth), target, before);
}

// --- drawing --------------------------------------------------------------------------------------------------

uint64_t mix(uint64_t x) {
  x += golden;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t key_of(int64_t seed, int64_t choice, int64_t position) {
  uint64_t key = 0;
  for (const int64_t part : {seed, choice, position}) key = mix(key + static_cast<uint64_t>(part));
  return key;
}

double noise(uint64_t key, int64_t token) {
  const uint64_t bits = mix(key + static_cast<uint64_t>(token) * golden) >> 12;
  return -std::log(-std::log((static_cast<double>(bits) + 0.5) * 0x1p-52));
}

// The token whose gap and noise are the largest sum, of those that are at least `least`.
int64_t draw(const Row& row, const ChoiceScale& scale, float least, uint64_t key) {
  int64_t winner = row.best();
  double best = noise(key, winner);
  for (int64_t group = 0; group < row.groups(); ++group) {
    const float largest = row.group_max(group);
    if (largest < least || gap(largest, scale) + most_noise < best) continue;
    const int64_t first = group * choice_group;
    const uint64_t state = key + static_cast<uint64_t>(first + 1) * golden;
    uint64_t left = kernels().contenders(row.group(group), row.group_size(group), scale, least, best, state);
    for (; left != 0; left &= left - 1) {
      const int64_t token = first + __builtin_ctzll(left);
      const double sum = gap(row[token], scale) + noise(key, token);
      if (sum > best || (sum == best && token < winner)) {
        winner = token;
        best = sum;
      }
    }
  }
  return winner;
}

int64_t choose_one(const Choices& args, int64_t index) {
  const Row row(args.logits.row(args.rows[index]), args.logits.vocab);
  const double temperature = args.temperature[index];
  if (temperature == 0.0 || !row.is_finite()) return row.best();
  const ChoiceScale scale{double{row.max()}, 1.0 / std::max(temperature, 1e-30)};
  float least = -infinity;
  if (args.min_p[index] > 0.0) least = min_p_cut(args.min_p[index], scale);
  if (args.top_k[index] > 0 && args.top_k[index] < row.count()) least = std::max(least, row.largest(args.top_k[index]));
  if (args.top_p[index] < 1.0) least = nucleus_cut(row, scale, least, args.top_p[index]);
  return draw(row, scale, least, key_of(args.seed[index], args.choice[index], args.position[index]));
}

// --- log probabilities ----------------------------------------------------------------------------------------

int64_t rank_of(const Row& row, float logit) {
  int64_t rank = 1;
  row.at_least(logit, [&](int64_t, float x) { rank += x > logit; });
  return rank;
}

// The most likely tokens, the first of equals first.
std::vector<int64_t> most_likely(const Row& row, int64_t count) {
  if (count == 0) return {};
  std::vector<std::pair<float, int64_t>> found;  // by logit downwards, then by token
  row.at_least(row.largest(count), [&](int64_t token, float x) { found.emplace_back(-x, token); });
  std::sort(found.begin(), found.end());
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(found[i].second);
  return tokens;
}

void logprobs_of(const Logprobs& args, int64_t index) {
  const Row row(args.logits.row(args.rows[index]), args.logits.vocab);
  double* values = args.values + index * (1 + args.alternatives);
  int64_t* ids = args.ids + index * (1 + args.alternatives);
  ids[0] = args.tokens[index];
  if (!row.is_finite()) {
    std::fill_n(values, 1 + args.alternatives, std::numeric_limits<double>::quiet_NaN());
    for (int64_t i = 0; i < args.alternatives; ++i) ids[1 + i] = i;
    args.ranks[index] = 1;
    return;
  }
  const ChoiceScale scale{double{row.max()}, 1.0};
  int64_t weight = 0;
  each_with_weight(row, scale, -infinity, [&](int64_t group) {
    weight += kernels().weigh(row.group(group), row.group_size(group), scale, -infinity, nullptr);
  });
  const double total = std::log(static_cast<double>(weight) / weight_unit);
  const std::vector<int64_t> likely = most_likely(row, args.alternatives);
  std::copy(likely.begin(), likely.end(), ids + 1);
  for (int64_t i = 0; i <= args.alternatives; ++i) values[i] = gap(row[ids[i]], scale) - total;
  args.ranks[index] = rank_of(row, row[ids[0]]);
}

}  // namespace

void choose(const Choices& args) {
  for_rows(args.count, args.logits.vocab, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) args.out[i] = choose_one(args, i);
  });
}

void logprobs(const Logprobs& args) {
  for_rows(args.count, args.logits.vocab, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) logprobs_of(args, i);
  });
}

}  // namespace core::cpu
