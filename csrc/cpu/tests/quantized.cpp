// Products with quantised weights, held against those of what the weights read as, in double.
#include "../quantized.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../threads.hpp"
#include "check.hpp"

namespace core::cpu::testing {
namespace {

// Blocks of any quants; scales, which are float16 at the start of a block or at the end of Q6_K's, of a model's size.
std::vector<uint8_t> random_blocks(const Scheme& scheme, int64_t blocks, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(blocks * scheme.block_bytes));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.below(256));
  const bool at_end = std::strcmp(scheme.name, "q6_k") == 0;
  const int64_t halves = scheme.form.offsets ? 2 : 1;
  for (int64_t block = 0; block < blocks; ++block) {
    uint8_t* at = bytes.data() + block * scheme.block_bytes + (at_end ? scheme.block_bytes - 2 : 0);
    for (int64_t i = 0; i < halves; ++i) {
      const uint16_t half = to_float16(random.normal() / 256);
      std::memcpy(at + i * 2, &half, sizeof half);
    }
  }
  return bytes;
}

// A random weight of a scheme, and what it reads as.
class PackedQuants {
 public:
  PackedQuants(const Scheme& scheme, int64_t outputs, int64_t inputs, Element type)
      : form_{nullptr, type, scheme.form, outputs, inputs}, packed_(form_.bytes()), values_(outputs, inputs, Element::float32) {
    std::memset(packed_.data(), 0, static_cast<size_t>(packed_.bytes()));
    if (scheme.decode != nullptr) {
      const std::vector<uint8_t> blocks = random_blocks(scheme, outputs * (inputs / scheme.block_inputs), 1);
      pack_blocks(weight(), scheme, 0, outputs, blocks.data());
    } else {
      quantize(weight(), scheme, 0, outputs, Rows::random(outputs, inputs, type, 1, 0.1f).matrix());
    }
    dequantize(weight(), 0, outputs, values_.matrix());
  }

  QuantizedWeight weight() const {
    QuantizedWeight weight = form_;
    weight.data = reinterpret_cast<char*>(packed_.data());
    return weight;
  }
  const Rows& values() const { return values_; }
  bool intact() const { return packed_.intact() && values_.intact(); }

 private:
  QuantizedWeight form_;
  Guarded packed_;
  Rows values_;
};

Rows product(const Rows& x, int64_t first, int64_t rows, const PackedQuants& weight, const Rows* bias, Element out_type) {
  Rows out(rows, weight.values().rows(), out_type);
  const Guarded scratch(scratch_bytes(weight.weight()));
  const Activations quantized = activations(reinterpret_cast<char*>(scratch.data()), weight.weight());
  linear_quantized({x.matrix(first), weight.weight(), bias == nullptr ? nullptr : bias->data(), out.matrix(), quantized}, rows);
  CHECK(scratch.intact(), "activations were written beside their place");
  return out;
}

// Half a step of a row's activations in the group of `input`.
double half_step(const Rows& x, int64_t row, int64_t input, const QuantizedWeight& weight) {
  const int64_t group = weight.group_inputs();
  double most = 0;
  for (int64_t i = input / group * group; i < std::min(x.columns(), (input / group + 1) * group); ++i) {
    most = std::max(most, std::fabs(static_cast<double>(x.at(row, i))));
  }
  return 0.5 * most / (weight.form.activation_bits == 8 ? 127 : 32639);
}

// A sum of n terms is within n u of the exact one (Higham 2002, equation 3.5). Its terms are those of the quants, before
// zero or offset are taken off: no more than |x| times the largest weight is added by these.
void check_product(const Scheme& scheme, int64_t rows, int64_t inputs, int64_t outputs, Element type, bool with_bias) {
  const Rows x = Rows::random(rows, inputs, type, 2);
  const PackedQuants weight(scheme, outputs, inputs, type);
  const Rows bias = Rows::random(1, outputs, type, 3);
  const Rows found = product(x, 0, rows, weight, with_bias ? &bias : nullptr, type);
  const Rows& values = weight.values();
  float largest = 0;
  for (int64_t output = 0; output < outputs; ++output) {
    for (int64_t i = 0; i < inputs; ++i) largest = std::max(largest, std::fabs(values.at(output, i)));
  }
  Rows wanted(rows, outputs, Element::float32);
  std::vector<double> allowed(static_cast<size_t>(rows * outputs));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t output = 0; output < outputs; ++output) {
      double sum = with_bias ? bias.at(0, output) : 0.0, lost = 0, terms = std::fabs(sum);
      for (int64_t i = 0; i < inputs; ++i) {
        const double w = values.at(output, i), input = x.at(row, i);
        sum += input * w;
        terms += std::fabs(input) * (8 * std::fabs(w) + largest);
        lost += 1.001 * half_step(x, row, i, weight.weight()) * std::fabs(w);
      }
      wanted.set(row, output, static_cast<float>(sum));
      allowed[static_cast<size_t>(row * outputs + output)] = lost / float_unit + static_cast<double>(inputs + 8) * terms;
    }
  }
  const Magnitude magnitude = [&](int64_t row, int64_t output) {
    return allowed[static_cast<size_t>(row * outputs + output)];
  };
  const std::string what = std::string(scheme.name) + " " + name_of(type) + ", " + std::to_string(rows) + " rows of " +
                           std::to_string(inputs);
  expect_close(found, wanted, type == Element::bfloat16 ? 1.01 : 2, 1, magnitude, what);
  CHECK(weight.intact(), what);
}

TEST(quantised_products_are_those_of_what_the_weights_read_as) {
  for (const Scheme& scheme : schemes()) {
    for (const Element type : {Element::float32, Element::bfloat16}) {
      for (const int64_t rows : {1, 3, 13}) check_product(scheme, rows, 256, 33, type, rows == 3);
    }
  }
  for (const int64_t inputs : {1, 29, 100}) check_product(scheme("int8"), 2, inputs, 17, Element::bfloat16, false);
}

TEST(a_row_of_a_quantised_product_is_the_same_bits_in_any_batch_and_on_any_threads) {
  for (const Scheme& scheme : schemes()) {
    const Rows x = Rows::random(200, 256, Element::bfloat16, 4);  // more than are quantised at a time
    const PackedQuants weight(scheme, 35, 256, Element::bfloat16);
    const Rows whole = product(x, 0, x.rows(), weight, nullptr, Element::float32);
    set_num_threads(3);
    const Rows threaded = product(x, 0, x.rows(), weight, nullptr, Element::float32);
    set_num_threads(1);
    for (int64_t row = 0; row < x.rows(); ++row) {
      CHECK(whole.same_bits(row, threaded, row), scheme.name + (" row " + std::to_string(row)));
    }
    for (const int64_t row : {0, 5, 191, 199}) {
      const Rows alone = product(x, row, 1, weight, nullptr, Element::float32);
      CHECK(whole.same_bits(row, alone, 0), scheme.name + (" row " + std::to_string(row)));
    }
  }
}

TEST(a_quantised_embedding_gives_what_its_rows_read_as) {
  for (const Scheme& scheme : schemes()) {
    const PackedQuants weight(scheme, 21, 256, Element::float32);
    const Numbers<int32_t> ids({20, 0, 3});
    Rows out(3, 256, Element::float32);
    embedding_quantized({ids.data(), weight.weight(), out.matrix()}, 3);
    for (int64_t row = 0; row < 3; ++row) {
      CHECK(out.same_bits(row, weight.values(), ids.data()[row]), std::string(scheme.name));
    }
    CHECK(out.intact() && weight.intact(), std::string(scheme.name));
  }
}

}  // namespace
}  // namespace core::cpu::testing
