// x times a quantised weight, transposed (quantized.hpp has the forms).
//
// With sw, sa the scales of a group's weights and activations and q, a their quants, an output is the sum over its groups,
// in their order from 0 on, of sw * sa * sum(q * a), the inner sum exact in int32, and of offset * sa * sum(a) where the
// weight has offsets; the one sw of an output that has no more is multiplied last. A row is quantised by itself, so its
// result does not depend on the batch, on tiles or on threads.
#include "../vec/dots.hpp"
#include "quantized.hpp"
#include "tier.hpp"
#include "write_out.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr int vectors = panel_outputs / lanes;

// T: activations' quants.
template <int bits_, int group_, bool offsets_, typename T>
struct Form {
  using Products = Quads<T>;
  static constexpr int bits = bits_;
  static constexpr int group = group_;
  static constexpr bool offsets = offsets_;
  static constexpr int words = bits == 8 ? 1 : 2;  // that lie in the same bytes
  // Rows whose sums fill the registers, those of the groups and those of the group.
  static constexpr int max_rows = lanes == 16 ? (sizeof(T) == 1 ? 12 : 8) : lanes == 8 ? 4 : 2;
};

// --- activations ----------------------------------------------------------------------------------------------

// Elements at … at + count of a row, which ends at `inputs`.
template <typename T, typename Quant>
void quantize_group(const T* x, int64_t at, int64_t inputs, int64_t count, int zero, char* to) {
  constexpr float largest = sizeof(Quant) == 1 ? 127.0f : 32639.0f;
  vuint magnitudes = {};  // as bits, whose order is the numbers' own, and not-a-number the largest
  for (int64_t i = 0; i < count; i += lanes) {
    const vuint bits = (vuint)load_padded(x, at + i, inputs) & 0x7fffffffu;
    magnitudes = magnitudes > bits ? magnitudes : bits;
  }
  const vint most = reduce((vint)magnitudes, [](vint a, vint b) { return a > b ? a : b; }) - vint{};
  const float magnitude = ((vfloat)most)[0];
  const bool is_zero = magnitude < 0x1p-120f;  // or so small that its inverse would be none
  const float inverse = is_zero ? 0.0f : largest / magnitude;

  char* quants = to + sizeof(ActivationHead);
  const vfloat round = broadcast(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the rounded integer
  vint total = {};
  for (int64_t i = 0; i < count; i += lanes) {
    const vint quant = (vint)(round + load_padded(x, at + i, inputs) * inverse) - (vint)round;
    total += quant;
    Quads<Quant>::store(quants + i / 4 * Quads<Quant>::input_bytes, quant);
  }
  const int32_t sum = reduce(total, [](vint a, vint b) { return a + b; });
  const float scale = is_zero ? 0.0f : magnitude / largest;
  const ActivationHead head{scale, scale * static_cast<float>(sum), -zero * sum, 0};
  __builtin_memcpy(to, &head, sizeof head);
}

template <typename T, typename Quant>
void quantize_row(const QuantizedLinear& args, int64_t row) {
  const QuantizedWeight& weight = args.weight;
  const auto* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
  char* to = args.quantized.data + row * args.quantized.row_bytes;
  const int64_t group_inputs = weight.group_inputs();
  for (int64_t at = 0; at < weight.inputs; at += group_inputs, to += args.quantized.group_bytes) {
    quantize_group<T, Quant>(x, at, weight.inputs, round_up(group_inputs, 16), weight.form.zero, to);
  }
}

// --- products -------------------------------------------------------------------------------------------------

// The words at an address, times those of each row.
template <typename F, int rows>
inline __attribute__((always_inline)) void add_words(const char* words, const char* x, int64_t row_bytes,
                                                     typename F::Products::Sum (&dots)[rows][vectors]) {
  using Products = typename F::Products;
  vuint bytes[vectors];
#pragma GCC unroll 4
  for (int i = 0; i < vectors; ++i) bytes[i] = load_vector<vuint>(words + i * lanes * 4);
#pragma GCC unroll 2
  for (int word = 0; word < F::words; ++word) {
    typename Products::Weights w[vectors];
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) {
      w[i] = Products::weights(F::bits == 8 ? bytes[i] : (word == 0 ? bytes[i] : bytes[i] >> 4) & 0x0f0f0f0fu);
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) {
      const typename Products::Input input = Products::input(x + row * row_bytes + word * Products::input_bytes);
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) dots[row][i] = Products::accumulate(dots[row][i], w[i], input);
    }
  }
}

// A group's dot products, scaled, to the sums.
template <typename F, int rows>
inline __attribute__((always_inline)) void add_group(const char* head, const char* x, int64_t row_bytes,
                                                     const typename F::Products::Sum (&dots)[rows][vectors],
                                                     vfloat (&sums)[rows][vectors]) {
#pragma GCC unroll 4
  for (int i = 0; i < vectors; ++i) {
    const auto* halves = reinterpret_cast<const uint16_t*>(head) + i * lanes;
    const vfloat scale = F::group == 0 ? vfloat{} : load_float16(halves);
    const vfloat offset = F::offsets ? load_float16(halves + panel_outputs) : vfloat{};
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) {
      const auto* activation = reinterpret_cast<const ActivationHead*>(x + row * row_bytes);
      const vfloat dot = to_floats(F::Products::total(dots[row][i]));
      const vfloat factor = F::group == 0 ? broadcast(activation->scale) : scale * activation->scale;
      sums[row][i] = sums[row][i] + dot * factor;
      if (F::offsets) sums[row][i] = sums[row][i] + offset * activation->sum;
    }
  }
}

// The sums of a panel's outputs to `to`, [rows, outputs].
template <typename F, int rows>
void block(const QuantizedLinear& args, int64_t row, int64_t panel, float* to) {
  using Products = typename F::Products;
  const QuantizedWeight& weight = args.weight;
  const int64_t row_bytes = args.quantized.row_bytes;
  const int64_t words = weight.group_inputs() / (4 * F::words);
  const char* head = weight.data + panel * weight.panel_bytes();
  const char* quants = head + weight.heads_bytes();
  const char* x = args.quantized.data + row * row_bytes;

  vfloat sums[rows][vectors] = {};
  for (int64_t left = weight.groups(); left > 0; --left) {
    typename Products::Sum dots[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto* activation = reinterpret_cast<const ActivationHead*>(x + r * row_bytes);
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) dots[r][i] = Products::sum_from(F::offsets ? 0 : activation->start);
    }
    const char* from = x + sizeof(ActivationHead);
    for (int64_t word = 0; word < words; ++word, quants += panel_outputs * 4, from += F::words * Products::input_bytes) {
      add_words<F, rows>(quants, from, row_bytes, dots);
    }
    add_group<F, rows>(head, x, row_bytes, dots, sums);
    if (F::group != 0) head += weight.head_bytes();
    x += args.quantized.group_bytes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) {
      const vfloat scale = F::group == 0 ? load(reinterpret_cast<const float*>(head) + i * lanes) : vfloat{};
      store(to + (r * vectors + i) * lanes, F::group == 0 ? sums[r][i] * scale : sums[r][i]);
    }
  }
}

// block<F, rows> for 1 to max_rows rows.
template <typename F, int rows = F::max_rows>
inline void rows_block(const QuantizedLinear& args, int64_t row, int64_t panel, int64_t count, float* to) {
  if (count == rows) return block<F, rows>(args, row, panel, to);
  if constexpr (rows > 1) rows_block<F, rows - 1>(args, row, panel, count, to);
}

// All rows of the tile, in blocks of nearly equal size.
template <typename F>
void all_rows(const QuantizedLinear& args, const LinearTile& tile, int64_t panel) {
  const bool wide = args.weight.type == Element::float32;
  const bool wide_out = args.out.type == Element::float32;
  const auto write = wide       ? write_out<float, float, QuantizedLinear>
                     : wide_out ? write_out<uint16_t, float, QuantizedLinear>
                                : write_out<uint16_t, uint16_t, QuantizedLinear>;
  const int64_t rows = tile.last_row - tile.first_row;
  const int64_t blocks = (rows + F::max_rows - 1) / F::max_rows;
  alignas(64) float sums[F::max_rows * panel_outputs];
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = tile.first_row + rows * i / blocks;
    const int64_t count = tile.first_row + rows * (i + 1) / blocks - row;
    rows_block<F>(args, row, panel, count, sums);
    write(args, sums, row, count, panel * panel_outputs, panel_outputs);
  }
}

template <typename F>
void run(const QuantizedLinear& args, const LinearTile& tile) {
  for (int64_t panel = tile.first_panel; panel < tile.last_panel; ++panel) all_rows<F>(args, tile, panel);
}

}  // namespace

void quantize_rows(const QuantizedLinear& args, int64_t first_row, int64_t last_row) noexcept {
  const bool wide = args.x.type == Element::float32;
  const auto quantize = args.weight.form.activation_bits == 8
                            ? (wide ? quantize_row<float, int8_t> : quantize_row<uint16_t, int8_t>)
                            : (wide ? quantize_row<float, int16_t> : quantize_row<uint16_t, int16_t>);
  for (int64_t row = first_row; row < last_row; ++row) quantize(args, row);
}

void linear_quantized(const QuantizedLinear& args, const LinearTile& tile) noexcept {
  const Quantization& form = args.weight.form;
  if (form.activation_bits == 8) {
    return (form.bits == 8 ? run<Form<8, 0, false, int8_t>> : run<Form<4, 32, true, int8_t>>)(args, tile);
  }
  if (form.bits == 4) {
    return (form.offsets ? run<Form<4, 32, true, int16_t>> : run<Form<4, 32, false, int16_t>>)(args, tile);
  }
  if (form.offsets) return run<Form<8, 32, true, int16_t>>(args, tile);
  (form.group == 16 ? run<Form<8, 16, false, int16_t>> : run<Form<8, 32, false, int16_t>>)(args, tile);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
