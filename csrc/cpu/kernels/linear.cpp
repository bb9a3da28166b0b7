// x times a packed weight, transposed: out[row, output] = sum over inputs of x[row, input] * weight[output, input].
//
// Each output of each row is one sum, from 0 on and in the order of the inputs, whatever rows and panels are computed
// with it: blocking over rows and panels only decides which sums are in registers together. So a row's result does not
// depend on the batch, on tiles or on threads.
#include "../vec/products.hpp"
#include "kernels.hpp"
#include "tier.hpp"
#include "write_out.hpp"

namespace core::cpu {
namespace CORE_ISA {
namespace {

// Rows and panels whose sums fill the registers, with the weights beside them.
constexpr int max_rows = lanes == 16 ? 12 : lanes == 8 ? 4 : registers / 8;
constexpr int max_panels = lanes == 16 ? 2 : 1;
constexpr int vectors = panel_outputs / lanes;

// One word of each of the panels, times that word of each row. `last`: there is no second input in the word.
template <typename T, int rows, int panels, bool last>
inline __attribute__((always_inline)) void add_word(const T* x, int64_t x_stride, const uint32_t* words,
                                                    int64_t panel_words, vfloat (&sums)[rows][panels * vectors]) {
  using W = Words<T>;
  typename W::Weights w[panels * vectors];
#pragma GCC unroll 8
  for (int i = 0; i < panels * vectors; ++i) {
    w[i] = W::weights(words + i / vectors * panel_words + i % vectors * lanes);
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
    const T* at = x + row * x_stride;
    const typename W::Input input = last ? W::last_input(at) : W::input(at);
#pragma GCC unroll 8
    for (int i = 0; i < panels * vectors; ++i) sums[row][i] = W::accumulate(sums[row][i], w[i], input);
  }
}

template <typename T, typename Out, int rows, int panels>
void block(const Linear& args, int64_t row, int64_t panel) {
  constexpr int per_word = Words<T>::per_word;
  const Weight& weight = args.weight;
  const int64_t panel_words = weight.panel_words();
  const int64_t x_stride = args.x.stride;
  const auto* x = static_cast<const T*>(args.x.data) + row * x_stride;
  const auto* words = static_cast<const uint32_t*>(weight.data) + panel * panel_words;

  vfloat sums[rows][panels * vectors] = {};
  const int64_t whole = weight.inputs / per_word * per_word;
  for (int64_t k = 0; k < whole; k += per_word, words += panel_outputs) {
    add_word<T, rows, panels, false>(x + k, x_stride, words, panel_words, sums);
  }
  if (whole < weight.inputs) add_word<T, rows, panels, true>(x + whole, x_stride, words, panel_words, sums);

  alignas(64) float scratch[rows * panels * panel_outputs];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < panels * vectors; ++i) store(scratch + (r * panels * vectors + i) * lanes, sums[r][i]);
  }
  write_out<T, Out>(args, scratch, row, rows, panel * panel_outputs, panels * panel_outputs);
}

// block<T, Out, rows, panels> for 1 to max_rows rows.
template <typename T, typename Out, int panels, int rows = max_rows>
inline void rows_block(const Linear& args, int64_t row, int64_t panel, int64_t count) {
  if (count == rows) return block<T, Out, rows, panels>(args, row, panel);
  if constexpr (rows > 1) rows_block<T, Out, panels, rows - 1>(args, row, panel, count);
}

// All rows of the tile, in blocks of nearly equal size.
template <typename T, typename Out, int panels>
void all_rows(const Linear& args, const LinearTile& tile, int64_t panel) {
  const int64_t rows = tile.last_row - tile.first_row;
  const int64_t blocks = (rows + max_rows - 1) / max_rows;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = rows * i / blocks;
    const int64_t last = rows * (i + 1) / blocks;
    rows_block<T, Out, panels>(args, tile.first_row + first, panel, last - first);
  }
}

template <typename T, typename Out>
void run(const Linear& args, const LinearTile& tile) {
  int64_t panel = tile.first_panel;
  for (; panel + max_panels <= tile.last_panel; panel += max_panels) all_rows<T, Out, max_panels>(args, tile, panel);
  for (; panel < tile.last_panel; ++panel) all_rows<T, Out, 1>(args, tile, panel);
}

}  // namespace

void linear(const Linear& args, const LinearTile& tile) noexcept {
  const bool wide = args.weight.type == Element::float32;
  const bool wide_out = args.out.type == Element::float32;
  const auto kernel = wide ? run<float, float> : wide_out ? run<uint16_t, float> : run<uint16_t, uint16_t>;
  kernel(args, tile);
}

}  // namespace CORE_ISA
}  // namespace core::cpu
