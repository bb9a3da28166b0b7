// The ops that copy rows or are scalar: one form for all tiers.
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace core::cpu {
namespace {

char* row_of(const Matrix& matrix, int64_t row) {
  return static_cast<char*>(matrix.data) + row * matrix.stride * element_size(matrix.type);
}

// Where row `index` of a packed weight begins; its words are panel_outputs apart.
uint32_t* packed_row(const Weight& weight, int64_t index) {
  return static_cast<uint32_t*>(weight.data) + index / panel_outputs * weight.panel_words() + index % panel_outputs;
}

void scatter(const char* from, uint32_t* to, const Weight& weight) {
  const int64_t bytes = weight.inputs * element_size(weight.type);
  for (int64_t word = 0; word < weight.words(); ++word) {
    uint32_t value = 0;
    std::memcpy(&value, from + word * 4, static_cast<size_t>(std::min<int64_t>(4, bytes - word * 4)));
    to[word * panel_outputs] = value;
  }
}

void gather(const uint32_t* from, char* to, const Weight& weight) {
  const int64_t bytes = weight.inputs * element_size(weight.type);
  for (int64_t word = 0; word < weight.words(); ++word) {
    const uint32_t value = from[word * panel_outputs];
    std::memcpy(to + word * 4, &value, static_cast<size_t>(std::min<int64_t>(4, bytes - word * 4)));
  }
}

}  // namespace

void check_tokens(const int32_t* token_ids, int64_t rows, int64_t outputs) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t id = token_ids[row];
    if (id < 0 || id >= outputs) {
      throw std::invalid_argument("token_ids: " + std::to_string(id) + " is not one of the " + std::to_string(outputs) +
                                  " rows of the embedding");
    }
  }
}

void embedding(const Embedding& args, int64_t rows) {
  check_tokens(args.token_ids, rows, args.weight.outputs);
  for_rows(rows, args.out.columns, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      gather(packed_row(args.weight, args.token_ids[row]), row_of(args.out, row), args.weight);
    }
  });
}

void select_rows(const SelectRows& args, int64_t rows) {
  for_rows(rows, args.out.columns, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      std::memcpy(row_of(args.out, row), row_of(args.x, args.indices[row]),
                  static_cast<size_t>(args.out.columns * element_size(args.out.type)));
    }
  });
}

void rope_angles(const int32_t* positions, const float* inv_freq, float scale, const Matrix& out, int64_t rows) {
  const int64_t half = out.columns / 2;
  constexpr int64_t elements_per_function = 16;  // a sine takes as long as so many elements of other kernels
  for_rows(rows, out.columns * elements_per_function, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      auto* angles = reinterpret_cast<float*>(row_of(out, row));
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions[row]) * inv_freq[i];
        angles[i] = std::cos(angle) * scale;
        angles[half + i] = std::sin(angle) * scale;
      }
    }
  });
}

void pack(const Packing& args, int64_t rows) {
  for_rows(rows, args.rows.columns, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      scatter(row_of(args.rows, row), packed_row(args.weight, args.first + row), args.weight);
    }
  });
}

void unpack(const Packing& args, int64_t rows) {
  for_rows(rows, args.rows.columns, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      gather(packed_row(args.weight, args.first + row), row_of(args.rows, row), args.weight);
    }
  });
}

}  // namespace core::cpu
