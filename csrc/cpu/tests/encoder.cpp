// What encoders have beside matrices: layer norm, activations, sums, attention in both directions, means.
#include <algorithm>
#include <cmath>

#include "check.hpp"

namespace core::cpu::testing {
namespace {

constexpr Element float_types[] = {Element::float32, Element::bfloat16};

std::string text(int64_t rows, int64_t columns, Element type) {
  return std::to_string(rows) + " x " + std::to_string(columns) + " " + name_of(type);
}

// An element is (total - mean) / spread * weight + bias; its error scales with what is subtracted and what is added.
void check_layer_norm(int64_t rows, int64_t width, Element type) {
  constexpr float eps = 1e-5f;
  const Rows x = Rows::random(rows, width, type, 1), residual = Rows::random(rows, width, type, 2);
  const Rows weight = Rows::random(1, width, type, 3), bias = Rows::random(1, width, type, 4);
  const auto normed = [&] {
    Rows out(rows, width, type);
    layer_norm({x.matrix(), residual.matrix(), weight.data(), bias.data(), out.matrix(), eps}, rows);
    return out;
  };
  const Magnitude magnitude = [&](int64_t row, int64_t column) {
    const auto total = [&](int64_t i) { return static_cast<double>(x.at(row, i)) + residual.at(row, i); };
    double mean = 0, sizes = 0, squares = 0;
    for (int64_t i = 0; i < width; ++i) mean += total(i) / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i) {
      sizes += std::fabs(total(i)) / static_cast<double>(width);
      squares += (total(i) - mean) * (total(i) - mean) / static_cast<double>(width);
    }
    const double size = (std::fabs(total(column)) + sizes) / std::sqrt(squares + eps);
    return size * std::fabs(weight.at(0, column)) + std::fabs(bias.at(0, column));
  };
  const Rows found = normed();
  const Reference scalar;
  expect_close(found, normed(), 2, static_cast<double>(width + 16), magnitude, text(rows, width, type));
}

TEST(layer_norm_is_the_scalar_tiers) {
  for (const Element type : float_types) {
    for (const int64_t width : {1, 7, 16, 33, 64, 384, 577}) check_layer_norm(5, width, type);
  }
}

void check_activation(const Rows& x, ActivationKind kind, const std::string& what) {
  const auto activated = [&] {
    Rows out(x.rows(), x.columns(), x.type());
    activation({x.matrix(), out.matrix(), kind}, x.rows());
    return out;
  };
  const Rows found = activated();
  const Reference scalar;
  const Magnitude size = [&](int64_t row, int64_t column) {
    return std::isfinite(x.at(row, column)) ? std::fabs(x.at(row, column)) : 1.0;
  };
  expect_close(found, activated(), 2, 16, size, what + " of kind " + std::to_string(static_cast<int>(kind)));
}

TEST(activations_are_the_scalar_tiers) {
  const float edges[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f, 0.625f, -0.625f, 1e-30f, 13.0f, -13.0f, 1e4f, -1e4f};
  Rows edge(1, 12, Element::float32);
  for (int64_t i = 0; i < 12; ++i) edge.set(0, i, edges[i]);
  for (const auto kind : {ActivationKind::gelu, ActivationKind::gelu_tanh, ActivationKind::relu, ActivationKind::tanh}) {
    for (const Element type : float_types) {
      for (const int64_t width : {1, 7, 64, 301}) {
        check_activation(Rows::random(4, width, type, 5, 3.0f), kind, text(4, width, type));
      }
    }
    check_activation(edge, kind, "edges");
  }
}

TEST(a_sum_is_the_scalar_tiers_bit_by_bit) {
  for (const Element type : float_types) {
    for (const int64_t width : {1, 7, 64, 301}) {
      const Rows x = Rows::random(4, width, type, 6), y = Rows::random(4, width, type, 7);
      const auto added = [&] {
        Rows out(4, width, type);
        sum({x.matrix(), y.matrix(), out.matrix()}, 4);
        return out;
      };
      const Rows found = added();
      const Reference scalar;
      const Rows wanted = added();
      for (int64_t row = 0; row < 4; ++row) CHECK(found.same_bits(row, wanted, row), text(4, width, type));
      CHECK(found.intact(), text(4, width, type));
    }
  }
}

// Sequences of 0, 1, 64, 65 and 17 tokens; the first two and the last two rows are nobody's.
const std::vector<int32_t> starts{2, 2, 3, 67, 132, 149};
constexpr int64_t num_tokens = 151;

// Attention in double: row `row` sees rows first to last.
double attended(const Rows& q, const Rows& k, const Rows& v, int64_t row, int64_t first, int64_t last, int64_t dims,
                int64_t group, float scale, int64_t column) {
  const int64_t head = column / dims, kv = head / group * dims;
  double most = -INFINITY, weights = 0, sum = 0;
  std::vector<double> scores;
  for (int64_t other = first; other < last; ++other) {
    double score = 0;
    for (int64_t i = 0; i < dims; ++i) score += static_cast<double>(q.at(row, head * dims + i)) * k.at(other, kv + i);
    scores.push_back(score * scale);
    most = std::max(most, scores.back());
  }
  for (int64_t other = first; other < last; ++other) {
    const double weight = std::exp(scores[static_cast<size_t>(other - first)] - most);
    weights += weight;
    sum += weight * v.at(other, kv + column % dims);
  }
  return sum / weights;
}

// Weights add up to one, so errors scale with the largest value; bfloat16's weights are rounded to it as well.
void check_attention(int64_t kv_heads, int64_t group, int64_t dims, Element type) {
  const int64_t columns = kv_heads * group * dims;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dims));
  const Rows q = Rows::random(num_tokens, columns, type, 8);
  const Rows k = Rows::random(num_tokens, kv_heads * dims, type, 9), v = Rows::random(num_tokens, kv_heads * dims, type, 10);
  Rows found(num_tokens, columns, type);
  const Numbers<int32_t> begins(starts);
  const auto num_seqs = static_cast<int64_t>(starts.size()) - 1;
  const EncoderAttention args{q.matrix(), k.matrix(), v.matrix(), found.matrix(), dims, kv_heads, scale};
  const Guarded scratch(scratch_bytes(args, num_seqs, num_tokens));
  encoder_attention(args, begins.data(), num_seqs, num_tokens, reinterpret_cast<char*>(scratch.data()));

  Rows wanted(num_tokens, columns, Element::float32);  // NaN where a row is nobody's
  double largest = 0;
  for (int64_t row = 0; row < num_tokens; ++row) {
    for (int64_t i = 0; i < kv_heads * dims; ++i) largest = std::max(largest, std::fabs(static_cast<double>(v.at(row, i))));
  }
  for (int64_t seq = 0; seq < num_seqs; ++seq) {
    const int64_t first = starts[static_cast<size_t>(seq)], last = starts[static_cast<size_t>(seq) + 1];
    for (int64_t row = first; row < last; ++row) {
      for (int64_t i = 0; i < columns; ++i) {
        wanted.set(row, i, static_cast<float>(attended(q, k, v, row, first, last, dims, group, scale, i)));
      }
    }
  }
  const double units = static_cast<double>(num_tokens + 8 * dims) + (type == Element::bfloat16 ? 2 * unit(type) / float_unit : 0);
  const std::string what = std::to_string(kv_heads * group) + " heads of " + std::to_string(dims) + " " + name_of(type);
  expect_close(found, wanted, 1, units, [&](int64_t, int64_t) { return largest; }, what);
  CHECK(scratch.intact(), what);
}

TEST(attention_sees_its_whole_sequence_and_no_other) {
  for (const Element type : float_types) {
    check_attention(3, 1, 32, type);
    check_attention(2, 2, 20, type);
    check_attention(1, 1, 7, type);
  }
}

TEST(means_are_of_each_sequences_rows) {
  for (const Element type : float_types) {
    const Rows x = Rows::random(num_tokens, 37, type, 11);
    const Numbers<int32_t> begins(starts);
    const auto num_seqs = static_cast<int64_t>(starts.size()) - 1;
    Rows found(num_seqs, 37, Element::float32), wanted(num_seqs, 37, Element::float32);
    mean_rows(x.matrix(), begins.data(), found.matrix(), num_seqs, num_tokens);
    for (int64_t seq = 0; seq < num_seqs; ++seq) {
      const int64_t first = starts[static_cast<size_t>(seq)], last = starts[static_cast<size_t>(seq) + 1];
      for (int64_t i = 0; i < 37; ++i) {
        double total = 0;
        for (int64_t row = first; row < last; ++row) total += x.at(row, i);
        wanted.set(seq, i, static_cast<float>(total / static_cast<double>(std::max<int64_t>(1, last - first))));
      }
    }
    expect_close(found, wanted, 1, 80, [](int64_t, int64_t) { return 6.0; }, name_of(type));
  }
}

}  // namespace
}  // namespace core::cpu::testing
