// Loops over rows, in items that are worth handing to another thread.
#pragma once

#include <algorithm>

#include "threads.hpp"

namespace core::cpu {

// Elements in an item: a few microseconds' work.
constexpr int64_t elements_per_item = 8192;

// Calls function(first_row, last_row) over [0, rows), rows having `columns` elements. The function must not throw.
template <typename Function>
void for_rows(int64_t rows, int64_t columns, const Function& function) {
  struct Context {
    const Function& function;
    int64_t rows;
    int64_t rows_per_item;
  };
  const Context context{function, rows, std::max<int64_t>(1, elements_per_item / std::max<int64_t>(1, columns))};
  const auto item = [](const void* data, int64_t index) noexcept {
    const Context& context = *static_cast<const Context*>(data);
    const int64_t first = index * context.rows_per_item;
    context.function(first, std::min(first + context.rows_per_item, context.rows));
  };
  parallel_for((rows + context.rows_per_item - 1) / context.rows_per_item, item, &context);
}

}  // namespace core::cpu
