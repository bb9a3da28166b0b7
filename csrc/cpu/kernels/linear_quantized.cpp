// x times a quantised weight, transposed (quantized.hpp has the forms).
//
// With sw, sa the scales of a group's weights and activations and q, a their quants, an output is the sum over its groups,
// in their order from 0 on, of sw * sa * sum(q * a), the inner sum exact in int32, and of offset * sa * sum(a) where the
// weight has offsets. A row is quantised by itself, so its result does not depend on the batch, on tiles or on threads.
#include "../vec/dots.hpp"
#include "quantized.hpp"
#include "tier.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

constexpr int vectors = panel_outputs / lanes;

template <int bits_, int group_, bool offsets_>
struct Form {
  static constexpr int bits = bits_;
  static constexpr int group = group_;
  static constexpr bool offsets = offsets_;
  static constexpr int words = bits == 8 ? 1 : 2;  // that lie in the same bytes
  // Rows and panels whose sums fill the registers: a panel has an int32 sum a row, and in groups a float one too.
  static constexpr int max_panels = lanes == 16 && group == 0 ? 2 : 1;
  static constexpr int max_rows = lanes == 16 ? 12 : lanes == 8 ? 4 : 2;
};

// --- activations ----------------------------------------------------------------------------------------------

// Elements at … at + count of a row, which ends at `inputs`.
template <typename T>
void quantize_group(const T* x, int64_t at, int64_t inputs, int64_t count, int zero, char* to) {
  vuint magnitudes = {};  // as bits, whose order is the numbers' own, and not-a-number the largest
  for (int64_t i = 0; i < count; i += lanes) {
    const vuint bits = (vuint)load_padded(x, at + i, inputs) & 0x7fffffffu;
    magnitudes = magnitudes > bits ? magnitudes : bits;
  }
  const vint most = reduce((vint)magnitudes, [](vint a, vint b) { return a > b ? a : b; }) - vint{};
  const float magnitude = ((vfloat)most)[0];
  const bool is_zero = magnitude < 0x1p-120f;  // or so small that its inverse would be none
  const float inverse = is_zero ? 0.0f : 127.0f / magnitude;

  auto* quants = reinterpret_cast<int8_t*>(to + sizeof(ActivationHead));
  const vfloat round = broadcast(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the rounded integer
  vint total = {};
  for (int64_t i = 0; i < count; i += lanes) {
    const vint quant = (vint)(round + load_padded(x, at + i, inputs) * inverse) - (vint)round;
    total += quant;
    store_bytes(quants + i, quant);
  }
  const int32_t sum = reduce(total, [](vint a, vint b) { return a + b; });
  const float scale = is_zero ? 0.0f : magnitude / 127.0f;
  const ActivationHead head{scale, scale * static_cast<float>(sum), -zero * sum, 0};
  __builtin_memcpy(to, &head, sizeof head);
}

template <typename T>
void quantize_row(const QuantizedLinear& args, int64_t row) {
  const QuantizedWeight& weight = args.weight;
  const auto* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
  char* to = args.quantized.data + row * args.quantized.row_bytes;
  const int64_t group_inputs = weight.group_inputs();
  for (int64_t at = 0; at < weight.inputs; at += group_inputs, to += args.quantized.group_bytes) {
    quantize_group(x, at, weight.inputs, round_up(group_inputs, 16), weight.form.zero, to);
  }
}

// --- products -------------------------------------------------------------------------------------------------

// Sums [rows, width] to their place in the output, with the bias.
template <typename T, typename Out>
__attribute__((noinline)) void write_out(const QuantizedLinear& args, const float* sums, int64_t row, int64_t rows,
                                         int64_t output, int64_t width) {
  const auto* bias = static_cast<const T*>(args.bias);
  auto* out = static_cast<Out*>(args.out.data) + row * args.out.stride;
  const int64_t outputs = args.weight.outputs;
  for (int64_t r = 0; r < rows; ++r, sums += width, out += args.out.stride) {
    for (int64_t i = 0; i < width && output + i < outputs; i += lanes) {
      vfloat sum = load(sums + i);
      if (bias != nullptr) sum = sum + load_padded(bias, output + i, outputs);
      store_padded(out, output + i, outputs, sum);
    }
  }
}

// `quads` words of each of the panels, times those of each row.
template <typename F, int rows, int panels>
inline __attribute__((always_inline)) void add_words(const char* words, int64_t panel_bytes, const char* x,
                                                     int64_t row_bytes, vint (&dots)[rows][panels * vectors]) {
  vuint bytes[panels * vectors];
#pragma GCC unroll 8
  for (int i = 0; i < panels * vectors; ++i) {
    bytes[i] = load_vector<vuint>(words + i / vectors * panel_bytes + i % vectors * lanes * 4);
  }
#pragma GCC unroll 2
  for (int word = 0; word < F::words; ++word) {
    Quads::Weights w[panels * vectors];
#pragma GCC unroll 8
    for (int i = 0; i < panels * vectors; ++i) {
      w[i] = Quads::weights(F::bits == 8 ? bytes[i] : (word == 0 ? bytes[i] : bytes[i] >> 4) & 0x0f0f0f0fu);
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) {
      const Quads::Input input = Quads::input(reinterpret_cast<const int8_t*>(x + row * row_bytes) + word * 4);
#pragma GCC unroll 8
      for (int i = 0; i < panels * vectors; ++i) dots[row][i] = Quads::accumulate(dots[row][i], w[i], input);
    }
  }
}

// A group's dot products, scaled, to the sums.
template <typename F, int rows, int panels>
inline __attribute__((always_inline)) void add_group(const char* heads, int64_t panel_bytes, const char* x,
                                                     int64_t row_bytes, const vint (&dots)[rows][panels * vectors],
                                                     vfloat (&sums)[rows][panels * vectors]) {
#pragma GCC unroll 8
  for (int i = 0; i < panels * vectors; ++i) {
    const char* head = heads + i / vectors * panel_bytes;
    const int64_t at = i % vectors * lanes;
    const vfloat scale = F::group == 0 ? load(reinterpret_cast<const float*>(head) + at)
                                       : load_float16(reinterpret_cast<const uint16_t*>(head) + at);
    const vfloat offset =
        F::offsets ? load_float16(reinterpret_cast<const uint16_t*>(head) + panel_outputs + at) : vfloat{};
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) {
      const auto* activation = reinterpret_cast<const ActivationHead*>(x + row * row_bytes);
      sums[row][i] = sums[row][i] + to_floats(dots[row][i]) * (scale * activation->scale);
      if (F::offsets) sums[row][i] = sums[row][i] + offset * activation->sum;
    }
  }
}

template <typename F, int rows, int panels>
void block(const QuantizedLinear& args, int64_t row, int64_t panel, float* scratch) {
  constexpr int width = panels * vectors;
  const QuantizedWeight& weight = args.weight;
  const int64_t panel_bytes = weight.panel_bytes();
  const int64_t head_bytes = weight.head_bytes();
  const int64_t row_bytes = args.quantized.row_bytes;
  const int64_t words = F::group == 0 ? weight.group_inputs() / (4 * F::words) : F::group / (4 * F::words);
  const char* heads = weight.data + panel * panel_bytes;
  const char* quants = heads + weight.heads_bytes();
  const char* x = args.quantized.data + row * row_bytes;

  vfloat sums[rows][width] = {};
  for (int64_t left = weight.groups(); left > 0; --left) {
    vint dots[rows][width];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto* activation = reinterpret_cast<const ActivationHead*>(x + r * row_bytes);
#pragma GCC unroll 8
      for (int i = 0; i < width; ++i) dots[r][i] = F::offsets ? vint{} : broadcast_int(activation->start);
    }
    const char* from = x + sizeof(ActivationHead);
#pragma GCC unroll 8
    for (int64_t word = 0; word < words; ++word, quants += panel_outputs * 4, from += 4 * F::words) {
      add_words<F, rows, panels>(quants, panel_bytes, from, row_bytes, dots);
    }
    add_group<F, rows, panels>(heads, panel_bytes, x, row_bytes, dots, sums);
    heads += head_bytes;
    x += args.quantized.group_bytes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) store(scratch + (r * width + i) * lanes, sums[r][i]);
  }
}

// block<F, rows, panels> for 1 to max_rows rows.
template <typename F, int panels, int rows = F::max_rows>
inline void rows_block(const QuantizedLinear& args, int64_t row, int64_t panel, int64_t count, float* scratch) {
  if (count == rows) return block<F, rows, panels>(args, row, panel, scratch);
  if constexpr (rows > 1) rows_block<F, panels, rows - 1>(args, row, panel, count, scratch);
}

// All rows of the tile, in blocks of nearly equal size.
template <typename F, int panels>
void all_rows(const QuantizedLinear& args, const LinearTile& tile, int64_t panel) {
  const bool wide = args.weight.type == Element::float32;
  const bool wide_out = args.out.type == Element::float32;
  const auto write = wide ? write_out<float, float> : wide_out ? write_out<uint16_t, float> : write_out<uint16_t, uint16_t>;
  const int64_t rows = tile.last_row - tile.first_row;
  const int64_t blocks = (rows + F::max_rows - 1) / F::max_rows;
  alignas(64) float scratch[F::max_rows * panels * panel_outputs];
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = tile.first_row + rows * i / blocks;
    const int64_t count = tile.first_row + rows * (i + 1) / blocks - row;
    rows_block<F, panels>(args, row, panel, count, scratch);
    write(args, scratch, row, count, panel * panel_outputs, panels * panel_outputs);
  }
}

template <typename F>
void run(const QuantizedLinear& args, const LinearTile& tile) {
  int64_t panel = tile.first_panel;
  for (; panel + F::max_panels <= tile.last_panel; panel += F::max_panels) all_rows<F, F::max_panels>(args, tile, panel);
  if constexpr (F::max_panels > 1) {
    for (; panel < tile.last_panel; ++panel) all_rows<F, 1>(args, tile, panel);
  }
}

}  // namespace

void quantize_rows(const QuantizedLinear& args, int64_t first_row, int64_t last_row) noexcept {
  const auto quantize = args.x.type == Element::float32 ? quantize_row<float> : quantize_row<uint16_t>;
  for (int64_t row = first_row; row < last_row; ++row) quantize(args, row);
}

void linear_quantized(const QuantizedLinear& args, const LinearTile& tile) noexcept {
  const Quantization& form = args.weight.form;
  if (form.bits == 4) return (form.offsets ? run<Form<4, 32, true>> : run<Form<4, 32, false>>)(args, tile);
  if (form.offsets) return run<Form<8, 32, true>>(args, tile);
  if (form.group == 0) return run<Form<8, 0, false>>(args, tile);
  (form.group == 16 ? run<Form<8, 16, false>> : run<Form<8, 32, false>>)(args, tile);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
