// Choosing tokens from rows of logits, and what their probabilities are. What a choice is, core/logits.py says: this
// makes the same ones, but where two sums of a gap and its noise are nearer to each other than a logarithm's rounding.
#pragma once

#include <cstdint>

namespace core::cpu {

// Rows of logits [vocab], `stride` elements apart.
struct Logits {
  const float* data;
  int64_t stride;
  int64_t vocab;

  const float* row(int64_t index) const { return data + index * stride; }
};

// `count` choices, an array [count] of each.
struct Choices {
  Logits logits;
  int64_t count;
  const int32_t* rows;        // of the logits
  const double* temperature;  // 0: the largest logit
  const int32_t* top_k;       // not in [1, vocab): off
  const double* top_p;        // 1: off
  const double* min_p;        // 0: off
  const int64_t* seed;
  const int64_t* choice;
  const int64_t* position;
  int64_t* out;
};

void choose(const Choices& args);

// Of `count` tokens: the log probability and the rank, and behind the token itself the `alternatives` most likely ones.
struct Logprobs {
  Logits logits;
  int64_t count;
  int64_t alternatives;
  const int32_t* rows;
  const int64_t* tokens;
  double* values;  // [count, 1 + alternatives]
  int64_t* ids;    // the same
  int64_t* ranks;  // [count], 1 is the most likely
};

void logprobs(const Logprobs& args);

}  // namespace core::cpu
