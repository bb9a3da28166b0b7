// Products with packed weights.
#include <cmath>

#include "../threads.hpp"
#include "check.hpp"

namespace core::cpu::testing {
namespace {

// A weight [outputs, inputs] of normal numbers, and its packed form.
class PackedWeight {
 public:
  PackedWeight(int64_t outputs, int64_t inputs, Element type, uint64_t seed)
      : rows_(Rows::random(outputs, inputs, type, seed)),
        packed_(Weight{nullptr, type, outputs, inputs}.bytes()) {
    // Outputs that fill up the last panel are zeros: the platform's memory is when it is given out.
    for (int64_t i = 0; i < packed_.bytes(); ++i) packed_.data()[i] = 0;
    pack({rows_.matrix(), weight(), 0}, outputs);
  }

  Weight weight() const { return {packed_.data(), rows_.type(), rows_.rows(), rows_.columns()}; }
  const Rows& rows() const { return rows_; }
  bool intact() const { return packed_.intact(); }

 private:
  Rows rows_;
  Guarded packed_;
};

struct Shape {
  int64_t rows, inputs, outputs;
};

std::string text(const Shape& shape, Element type) {
  return std::to_string(shape.rows) + " x " + std::to_string(shape.inputs) + " -> " + std::to_string(shape.outputs) +
         " " + name_of(type);
}

Rows product(const Rows& x, const PackedWeight& weight, const Rows* bias, Element out_type) {
  Rows out(x.rows(), weight.rows().rows(), out_type);
  linear({x.matrix(), weight.weight(), bias == nullptr ? nullptr : bias->data(), out.matrix()}, x.rows());
  return out;
}

// The sum of the terms' absolute values.
Magnitude terms(const Rows& x, const PackedWeight& weight, const Rows* bias) {
  return [&x, &weight, bias](int64_t row, int64_t output) {
    double sum = bias == nullptr ? 0 : std::fabs(bias->at(0, output));
    for (int64_t i = 0; i < x.columns(); ++i) {
      sum += std::fabs(static_cast<double>(x.at(row, i)) * weight.rows().at(output, i));
    }
    return sum;
  };
}

// Either side's sum of n terms is within n u of the exact one (Higham 2002, equation 3.5), and within 2 n u where a
// dot-product instruction does not round to nearest; each is rounded to its type once.
void check_product(const Shape& shape, Element type, bool with_bias, bool wide_out) {
  const Rows x = Rows::random(shape.rows, shape.inputs, type, 1);
  const PackedWeight weight(shape.outputs, shape.inputs, type, 2);
  const Rows bias = Rows::random(1, shape.outputs, type, 3);
  const Rows* given = with_bias ? &bias : nullptr;
  const Element out_type = wide_out ? Element::float32 : type;
  const Rows found = product(x, weight, given, out_type);
  const Reference scalar;
  const Rows wanted = product(x, weight, given, out_type);
  const double units = 3.0 * static_cast<double>(shape.inputs + 2);
  expect_close(found, wanted, 2, units, terms(x, weight, given), text(shape, type));
  CHECK(weight.intact(), "the weight was written");
}

const std::vector<Shape> shapes = {
    {1, 1, 1},    {1, 7, 5},    {2, 33, 17},  {3, 64, 97},   {4, 130, 48}, {5, 31, 16},    {7, 32, 33},
    {11, 16, 15}, {12, 48, 32}, {13, 65, 64}, {25, 100, 47}, {31, 24, 80}, {1, 1536, 576}, {2, 576, 100},
};

TEST(linear_is_the_scalar_tiers) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    for (const Shape& shape : shapes) check_product(shape, type, false, false);
    check_product({6, 35, 21}, type, true, false);
    check_product({6, 35, 21}, type, true, true);
    check_product({6, 35, 21}, type, false, true);
  }
}

TEST(a_row_of_linear_is_the_same_bits_in_any_batch_and_on_any_threads) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    for (const int64_t inputs : {33, 96}) {
      const Rows x = Rows::random(200, inputs, type, 4);  // more than one item's rows
      const PackedWeight weight(35, inputs, type, 5);
      const Rows whole = product(x, weight, nullptr, type);
      set_num_threads(3);
      const Rows threaded = product(x, weight, nullptr, type);
      set_num_threads(1);
      for (int64_t row = 0; row < x.rows(); ++row) {
        CHECK(whole.same_bits(row, threaded, row), "row " + std::to_string(row));
      }
      for (const int64_t row : {0, 5, 191, 199}) {
        Rows alone(1, 35, type);
        linear({x.matrix(row), weight.weight(), nullptr, alone.matrix()}, 1);
        CHECK(whole.same_bits(row, alone, 0), text({1, inputs, 35}, type) + ", row " + std::to_string(row));
      }
    }
  }
}

TEST(what_is_packed_comes_back) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    for (const Shape& shape : shapes) {
      const PackedWeight weight(shape.outputs, shape.inputs, type, 6);
      Rows back(shape.outputs, shape.inputs, type);
      unpack({back.matrix(), weight.weight(), 0}, shape.outputs);
      CHECK(back.intact() && weight.intact(), text(shape, type));
      for (int64_t row = 0; row < shape.outputs; ++row) {
        CHECK(back.same_bits(row, weight.rows(), row), text(shape, type));
      }
      Rows embedded(1, shape.inputs, type);
      const Numbers<int32_t> last({static_cast<int32_t>(shape.outputs - 1)});
      embedding({last.data(), weight.weight(), embedded.matrix()}, 1);
      CHECK(embedded.intact() && embedded.same_bits(0, weight.rows(), shape.outputs - 1), text(shape, type));
    }
  }
}

}  // namespace
}  // namespace core::cpu::testing
