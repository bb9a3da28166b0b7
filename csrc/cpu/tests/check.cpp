#include "check.hpp"

#include <cmath>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace core::cpu::testing {

const char* name_of(Element type) {
  return type == Element::int8 ? "int8" : type == Element::bfloat16 ? "bfloat16" : "float32";
}

float number_from(Element type, const void* at) {
  uint32_t bits = 0;
  if (type == Element::bfloat16) {
    uint16_t half;
    std::memcpy(&half, at, sizeof half);
    bits = uint32_t{half} << 16;
  } else {
    std::memcpy(&bits, at, sizeof bits);
  }
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// Rounds to nearest even; for numbers, not for NaN.
void number_to(Element type, float number, void* at) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  if (type == Element::bfloat16) {
    const auto half = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    std::memcpy(at, &half, sizeof half);
  } else {
    std::memcpy(at, &bits, sizeof bits);
  }
}

// xorshift64* (Vigna 2016, arXiv:1402.6246).
uint64_t Random::next() {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return (state_ * 2685821657736338717u) >> 16;
}

// The sum of twelve uniform numbers: near enough to normal, and without a library's rounding.
float Random::normal() {
  double sum = -6.0;
  for (int i = 0; i < 12; ++i) sum += static_cast<double>(next() & 0xffffff) / (1 << 24);
  return static_cast<float>(sum);
}

// --- guarded memory ---------------------------------------------------------------------------------------------

Guarded::Guarded(int64_t bytes) : bytes_(bytes), memory_(new unsigned char[static_cast<size_t>(bytes + 2 * guard)]) {
  std::memset(memory_.get(), 0xff, static_cast<size_t>(bytes_ + 2 * guard));
  shut(true);
}

Guarded::Guarded(const Guarded& other) : Guarded(other.bytes_) {
  std::memcpy(data(), other.data(), static_cast<size_t>(bytes_));
}

Guarded::~Guarded() { shut(false); }

void Guarded::shut(bool shut) const {
#if defined(__SANITIZE_ADDRESS__)
  for (unsigned char* from : {memory_.get(), data() + bytes_}) {
    shut ? ASAN_POISON_MEMORY_REGION(from, guard) : ASAN_UNPOISON_MEMORY_REGION(from, guard);
  }
#else
  static_cast<void>(shut);
#endif
}

bool Guarded::intact() const {
  shut(false);
  bool intact = true;
  for (int64_t i = 0; i < guard; ++i) {
    intact = intact && memory_[static_cast<size_t>(i)] == 0xff && data()[bytes_ + i] == 0xff;
  }
  shut(true);
  return intact;
}

// --- rows -------------------------------------------------------------------------------------------------------

Rows::Rows(int64_t rows, int64_t columns, Element type, int64_t gap)
    : rows_(rows), columns_(columns), gap_(gap), type_(type), memory_(rows * (columns + gap) * element_size(type)) {}

Rows Rows::random(int64_t rows, int64_t columns, Element type, uint64_t seed, float scale) {
  Rows made(rows, columns, type);
  Random numbers(seed);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) made.set(row, column, numbers.normal() * scale);
  }
  return made;
}

bool Rows::intact() const {
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t i = 0; i < gap_ * element_size(type_); ++i) {
      if (address(row, columns_)[i] != 0xff) return false;
    }
  }
  return memory_.intact();
}

bool Rows::same_bits(int64_t row, const Rows& other, int64_t other_row) const {
  return std::memcmp(address(row, 0), other.address(other_row, 0),
                     static_cast<size_t>(columns_ * element_size(type_))) == 0;
}

// --- comparing --------------------------------------------------------------------------------------------------

void expect_close(const Rows& found, const Rows& wanted, double roundings, double float_units,
                  const Magnitude& magnitude, const std::string& what) {
  CHECK(found.intact(), what);
  for (int64_t row = 0; row < found.rows(); ++row) {
    for (int64_t column = 0; column < found.columns(); ++column) {
      const double a = found.at(row, column);
      const double b = wanted.at(row, column);
      if (std::isnan(b) ? std::isnan(a) : a == b) continue;
      const double bound = std::fabs(b) * 1.01 * roundings * unit(found.type()) +
                           magnitude(row, column) * float_units * float_unit;
      if (std::fabs(a - b) <= bound) continue;
      fail(what + ": [" + std::to_string(row) + ", " + std::to_string(column) + "] is " + std::to_string(a) + ", not " +
           std::to_string(b) + "; the bound is " + std::to_string(bound));
      return;
    }
  }
}

Magnitude own(const Rows& wanted) {
  return [&wanted](int64_t row, int64_t column) { return std::fabs(static_cast<double>(wanted.at(row, column))); };
}

}  // namespace core::cpu::testing
