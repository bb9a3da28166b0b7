// Norms, SwiGLU's product, the rotation: what goes through a step's rows one by one.
#include <cmath>

#include "check.hpp"

namespace core::cpu::testing {
namespace {

constexpr Matrix nothing{nullptr, Element::float32, 0, 0};

std::string text(int64_t rows, int64_t columns, Element type) {
  return std::to_string(rows) + " x " + std::to_string(columns) + " " + name_of(type);
}

// The sum of squares is of `width` terms, half of whose error reaches the result; twice rounded on each side.
void check_norm(int64_t rows, int64_t groups, int64_t width, Element type) {
  const Rows x = Rows::random(rows, groups * width, type, 1);
  const Rows weight = Rows::random(1, width, type, 2);
  const auto normed = [&] {
    Rows out(rows, groups * width, type);
    norm({x.matrix(), nothing, weight.data(), width, out.matrix(), nothing, 1e-5f}, rows);
    return out;
  };
  const Rows found = normed();
  const Reference scalar;
  const Rows wanted = normed();
  expect_close(found, wanted, 4, static_cast<double>(width + 16), own(wanted), text(rows, groups * width, type));
}

TEST(norm_is_the_scalar_tiers) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    for (const int64_t width : {1, 7, 16, 33, 64, 577}) check_norm(5, 1, width, type);
    check_norm(3, 9, 64, type);
    check_norm(2, 3, 21, type);
  }
}

// The sum with the residual is one rounding of one addition: the same bits everywhere.
TEST(the_residual_sum_is_the_scalar_tiers_bit_by_bit) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    for (const int64_t width : {1, 7, 64, 577}) {
      const Rows x = Rows::random(4, width, type, 3);
      const Rows residual = Rows::random(4, width, type, 4);
      const Rows weight = Rows::random(1, width, type, 5);
      const auto total_of = [&](Rows& normed) {
        Rows total(4, width, type);
        norm({x.matrix(), residual.matrix(), weight.data(), width, normed.matrix(), total.matrix(), 1e-6f}, 4);
        return total;
      };
      Rows found_normed(4, width, type);
      const Rows found = total_of(found_normed);
      const Reference scalar;
      Rows wanted_normed(4, width, type);
      const Rows wanted = total_of(wanted_normed);
      expect_close(found, wanted, 0, 0, own(wanted), "total of " + text(4, width, type));
      expect_close(found_normed, wanted_normed, 4, static_cast<double>(width + 16), own(wanted_normed),
                   "normed of " + text(4, width, type));
    }
  }
}

Rows silu_product(const Rows& gate_up) {
  Rows out(gate_up.rows(), gate_up.columns() / 2, gate_up.type());
  silu_mul({gate_up.matrix(), out.matrix()}, gate_up.rows());
  return out;
}

TEST(silu_mul_is_the_scalar_tiers) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    for (const int64_t width : {1, 7, 16, 64, 1541}) {
      const Rows gate_up = Rows::random(5, 2 * width, type, 6, 20.0f);
      const Rows found = silu_product(gate_up);
      const Reference scalar;
      const Rows wanted = silu_product(gate_up);
      expect_close(found, wanted, 4, 8, own(wanted), text(5, width, type));
    }
  }
}

TEST(silu_mul_of_what_is_not_finite_is_the_scalar_tiers) {
  const float infinity = INFINITY;
  const float gates[] = {infinity, -infinity, NAN, 88.5f, -88.5f, -1000.0f, 0.0f, -0.0f, 1e30f, -1e30f, 3e38f};
  Rows gate_up(1, 22, Element::float32);
  for (int64_t i = 0; i < 11; ++i) {
    gate_up.set(0, i, gates[i]);
    gate_up.set(0, 11 + i, 1.0f);
  }
  const Rows found = silu_product(gate_up);
  const Reference scalar;
  const Rows wanted = silu_product(gate_up);
  expect_close(found, wanted, 0, 8, own(wanted), "edges");
}

// Two products and their sum: a fused multiply-add rounds once less. Relative to both terms, which are below 6 * 6.
void check_rope(int64_t rows, int64_t head_dim, int64_t rotated, Element type) {
  const Rows x = Rows::random(rows, 3 * head_dim, type, 7);
  const Rows angles = Rows::random(rows, rotated, Element::float32, 8);
  const auto turned = [&] {
    Rows out(rows, 3 * head_dim, type);
    rope({x.matrix(), angles.matrix(), out.matrix(), head_dim}, rows);
    return out;
  };
  const Rows found = turned();
  const Reference scalar;
  const Rows wanted = turned();
  expect_close(found, wanted, 2, 4, [](int64_t, int64_t) { return 72.0; }, text(rows, head_dim, type));
}

TEST(rope_is_the_scalar_tiers) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    check_rope(5, 64, 64, type);
    check_rope(1, 64, 32, type);
    check_rope(29, 6, 2, type);
    check_rope(3, 80, 80, type);
    check_rope(7, 20, 14, type);
  }
}

// Sums of bfloat16 are rounded to nearest even on every tier.
TEST(rounding_to_bfloat16_is_the_scalar_tiers_bit_by_bit) {
  Rows x(1, 512, Element::bfloat16);
  Rows residual(1, 512, Element::bfloat16);
  Random numbers(9);
  for (int64_t i = 0; i < 512; ++i) {
    x.set(0, i, std::ldexp(1.0f + static_cast<float>(numbers.below(128)) / 128, static_cast<int>(i % 9)));
    residual.set(0, i, 1.0f + static_cast<float>(numbers.below(128)) / 128);  // ties are frequent
  }
  x.set(0, 17, NAN);
  x.set(0, 18, INFINITY);
  x.set(0, 19, 3.39e38f);
  residual.set(0, 19, 3.39e38f);
  const Rows weight = Rows::random(1, 512, Element::bfloat16, 10);
  const auto total_of = [&] {
    Rows total(1, 512, Element::bfloat16);
    Rows normed(1, 512, Element::bfloat16);
    norm({x.matrix(), residual.matrix(), weight.data(), 512, normed.matrix(), total.matrix(), 1e-6f}, 1);
    return total;
  };
  const Rows found = total_of();
  const Reference scalar;
  const Rows wanted = total_of();
  expect_close(found, wanted, 0, 0, own(wanted), "rounding");
}

}  // namespace
}  // namespace core::cpu::testing
