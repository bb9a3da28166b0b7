// What the tests of the kernels share: tests that run once on every tier, operands with guards around them, and bounds.
//
// A test is TEST(name) { … } in a file of this folder. It runs on every tier that the processor has; what it computes
// again under Reference is the scalar tier's, which tests/csrc ties to core/ops.py. Bounds are stated in units of rounding:
// u is half a unit in the last place, 2^-24 of float32 and 2^-8 of bfloat16.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../dispatch.hpp"
#include "../isa.hpp"

namespace core::cpu::testing {

// --- tests ------------------------------------------------------------------------------------------------------

struct Test {
  Test(const char* name, void (*body)());
};

// Records a failure of the test that runs, on the tier that it runs on.
void fail(const std::string& what);

#define TEST(name)                                            \
  static void name();                                         \
  static const core::cpu::testing::Test name##_(#name, name); \
  static void name()

#define CHECK(condition, what) \
  if (!(condition)) core::cpu::testing::fail((what) + std::string(": not " #condition))

// The scalar tier, as long as this lives.
class Reference {
 public:
  Reference() { set_isa("scalar"); }
  ~Reference() { set_isa(tested_); }

 private:
  std::string tested_ = isa();
};

// --- numbers ----------------------------------------------------------------------------------------------------

constexpr double float_unit = 1.0 / (1 << 24);
constexpr double unit(Element type) { return type == Element::bfloat16 ? 1.0 / (1 << 8) : float_unit; }
const char* name_of(Element type);

float number_from(Element type, const void* at);
void number_to(Element type, float number, void* at);

// Standard normal numbers, the same for a seed on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435761u + 1) {}
  float normal();
  int64_t below(int64_t count) { return static_cast<int64_t>(next() % static_cast<uint64_t>(count)); }

 private:
  uint64_t next();
  uint64_t state_;
};

// --- operands ---------------------------------------------------------------------------------------------------

// Bytes of 0xff (a NaN in every type of float) with guards of the same on both sides. Under the address sanitizer the
// guards cannot be touched; without it, intact() tells whether they were written.
class Guarded {
 public:
  explicit Guarded(int64_t bytes);
  ~Guarded();
  Guarded(const Guarded& other);
  Guarded& operator=(const Guarded&) = delete;

  unsigned char* data() const { return memory_.get() + guard; }
  int64_t bytes() const { return bytes_; }
  bool intact() const;

 private:
  static constexpr int64_t guard = 256;
  void shut(bool shut) const;
  int64_t bytes_;
  std::unique_ptr<unsigned char[]> memory_;
};

// A matrix whose rows are `gap` elements apart: they begin at odd addresses, and what is between them must stay NaN.
class Rows {
 public:
  Rows(int64_t rows, int64_t columns, Element type, int64_t gap = 3);

  static Rows random(int64_t rows, int64_t columns, Element type, uint64_t seed, float scale = 1.0f);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  Element type() const { return type_; }
  float at(int64_t row, int64_t column) const { return number_from(type_, address(row, column)); }
  void set(int64_t row, int64_t column, float number) { number_to(type_, number, address(row, column)); }

  // What the kernels take; from `row` on.
  Matrix matrix(int64_t row = 0) const { return {address(row, 0), type_, columns_, columns_ + gap_}; }
  const void* data() const { return address(0, 0); }
  void* data() { return address(0, 0); }

  // Nothing was written around or between the rows.
  bool intact() const;
  // Whether a row has the same bits as one of another matrix.
  bool same_bits(int64_t row, const Rows& other, int64_t other_row) const;

 private:
  unsigned char* address(int64_t row, int64_t column) const {
    return memory_.data() + (row * (columns_ + gap_) + column) * element_size(type_);
  }
  int64_t rows_, columns_, gap_;
  Element type_;
  Guarded memory_;
};

template <typename T>
class Numbers {
 public:
  explicit Numbers(const std::vector<T>& values) : memory_(static_cast<int64_t>(values.size() * sizeof(T))) {
    for (size_t i = 0; i < values.size(); ++i) data()[i] = values[i];
  }
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }

 private:
  Guarded memory_;
};

// --- comparing --------------------------------------------------------------------------------------------------

// What the rounding of an element's float32 arithmetic scales with.
using Magnitude = std::function<double(int64_t row, int64_t column)>;

// |found - wanted| <= |wanted| * roundings * u + magnitude * float_units * 2^-24, element by element: `roundings` to the
// element type on both sides together. NaN only where NaN is wanted, and nothing is written beside the output.
void expect_close(const Rows& found, const Rows& wanted, double roundings, double float_units,
                  const Magnitude& magnitude, const std::string& what);

// The magnitude of what is no sum: the result's own.
Magnitude own(const Rows& wanted);

}  // namespace core::cpu::testing
