#include <string>

#include "bindings.hpp"
#include "checks.hpp"
#include "choose.hpp"

namespace core::cpu {
namespace {

Logits checked_logits(uintptr_t data, int64_t num_rows, int64_t vocab, int64_t stride) {
  require(vocab > 0, "vocab", "must be positive");
  require(stride >= vocab || num_rows <= 1, "stride", "is less than vocab");
  return {pointer<const float>(data, "logits"), stride, vocab};
}

void check_each(const int32_t* rows, int64_t count, int64_t num_rows) {
  for (int64_t i = 0; i < count; ++i) require(rows[i] >= 0 && rows[i] < num_rows, "rows", "has one that is not there");
}

void py_choose(uintptr_t logits, int64_t num_rows, int64_t vocab, int64_t stride, int64_t count, uintptr_t rows,
               uintptr_t temperature, uintptr_t top_k, uintptr_t top_p, uintptr_t min_p, uintptr_t seed,
               uintptr_t choice, uintptr_t position, uintptr_t out) {
  require(count >= 0, "count", "must not be negative");
  if (count == 0) return;
  const Choices args{checked_logits(logits, num_rows, vocab, stride),
                     count,
                     pointer<const int32_t>(rows, "rows"),
                     pointer<const double>(temperature, "temperature"),
                     pointer<const int32_t>(top_k, "top_k"),
                     pointer<const double>(top_p, "top_p"),
                     pointer<const double>(min_p, "min_p"),
                     pointer<const int64_t>(seed, "seed"),
                     pointer<const int64_t>(choice, "choice"),
                     pointer<const int64_t>(position, "position"),
                     pointer<int64_t>(out, "out")};
  check_each(args.rows, count, num_rows);
  const py::gil_scoped_release release;
  choose(args);
}

void py_logprobs(uintptr_t logits, int64_t num_rows, int64_t vocab, int64_t stride, int64_t count, int64_t alternatives,
                 uintptr_t rows, uintptr_t tokens, uintptr_t values, uintptr_t ids, uintptr_t ranks) {
  require(count >= 0, "count", "must not be negative");
  require(alternatives >= 0 && alternatives <= vocab, "alternatives", "must be in [0, vocab]");
  if (count == 0) return;
  const Logprobs args{checked_logits(logits, num_rows, vocab, stride),
                      count,
                      alternatives,
                      pointer<const int32_t>(rows, "rows"),
                      pointer<const int64_t>(tokens, "tokens"),
                      pointer<double>(values, "values"),
                      pointer<int64_t>(ids, "ids"),
                      pointer<int64_t>(ranks, "ranks")};
  check_each(args.rows, count, num_rows);
  for (int64_t i = 0; i < count; ++i) {
    require(args.tokens[i] >= 0 && args.tokens[i] < vocab, "tokens", "has one that is not of the vocabulary");
  }
  const py::gil_scoped_release release;
  logprobs(args);
}

}  // namespace

void bind_choose(py::module_& module) {
  using namespace py::literals;
  module.def("choose", &py_choose, "logits"_a, "num_rows"_a, "vocab"_a, "stride"_a, "count"_a, "rows"_a,
             "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seed"_a, "choice"_a, "position"_a, "out"_a);
  module.def("logprobs", &py_logprobs, "logits"_a, "num_rows"_a, "vocab"_a, "stride"_a, "count"_a, "alternatives"_a,
             "rows"_a, "tokens"_a, "values"_a, "ids"_a, "ranks"_a);
}

}  // namespace core::cpu
