#include "quantized.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "bfloat16.hpp"
#include "dispatch.hpp"
#include "isa.hpp"
#include "parallel.hpp"

namespace core::cpu {
namespace {

// Bytes of panels in an item: a pair, which the kernels take at a time, or more where they are short.
constexpr int64_t bytes_per_item = 32 << 10;

// Where one output's bytes lie in its panel.
struct Place {
  char* heads;
  char* words;
};

Place place(const QuantizedWeight& weight, int64_t output) {
  char* panel = weight.data + output / panel_outputs * weight.panel_bytes();
  return {panel, panel + weight.heads_bytes() + output % panel_outputs * 4};
}

// One output before it is packed, or after it is unpacked: quants of whole groups, and their scales.
class Output {
 public:
  explicit Output(const QuantizedWeight& weight)
      : quants_(static_cast<size_t>(weight.groups() * weight.group_inputs())),
        scales_(static_cast<size_t>(weight.heads())),
        offsets_(scales_.size()) {}

  Quants at(int64_t first_input, int64_t first_group) {
    return {quants_.data() + first_input, scales_.data() + first_group, offsets_.data() + first_group};
  }

  void store(const QuantizedWeight& weight, int64_t output) const {
    const Place to = place(weight, output);
    const int64_t lane = output % panel_outputs;
    for (size_t group = 0; group < scales_.size(); ++group) {
      char* head = to.heads + static_cast<int64_t>(group) * weight.head_bytes();
      if (weight.form.group == 0) {
        reinterpret_cast<float*>(head)[lane] = scales_[group];
        continue;
      }
      auto* halves = reinterpret_cast<uint16_t*>(head);
      halves[lane] = to_float16(scales_[group]);
      if (weight.form.offsets) halves[panel_outputs + lane] = to_float16(offsets_[group]);
    }
    char* word = to.words;
    if (weight.form.bits == 8) {
      for (size_t i = 0; i < quants_.size(); i += 4, word += panel_outputs * 4) std::memcpy(word, &quants_[i], 4);
      return;
    }
    for (size_t i = 0; i < quants_.size(); i += 8, word += panel_outputs * 4) {
      for (size_t byte = 0; byte < 4; ++byte) {
        word[byte] = static_cast<char>(quants_[i + byte] | quants_[i + 4 + byte] << 4);
      }
    }
  }

  void load(const QuantizedWeight& weight, int64_t output) {
    const Place from = place(weight, output);
    const int64_t lane = output % panel_outputs;
    for (size_t group = 0; group < scales_.size(); ++group) {
      const char* head = from.heads + static_cast<int64_t>(group) * weight.head_bytes();
      if (weight.form.group == 0) {
        scales_[group] = reinterpret_cast<const float*>(head)[lane];
        continue;
      }
      const auto* halves = reinterpret_cast<const uint16_t*>(head);
      scales_[group] = from_float16(halves[lane]);
      if (weight.form.offsets) offsets_[group] = from_float16(halves[panel_outputs + lane]);
    }
    const char* word = from.words;
    if (weight.form.bits == 8) {
      for (size_t i = 0; i < quants_.size(); i += 4, word += panel_outputs * 4) std::memcpy(&quants_[i], word, 4);
      return;
    }
    for (size_t i = 0; i < quants_.size(); i += 8, word += panel_outputs * 4) {
      for (size_t byte = 0; byte < 4; ++byte) {
        quants_[i + byte] = word[byte] & 15;
        quants_[i + 4 + byte] = static_cast<uint8_t>(word[byte]) >> 4;
      }
    }
  }

  // The weights that the quants stand for.
  void values(const QuantizedWeight& weight, float* to) const {
    const int64_t group_inputs = weight.group_inputs();
    for (int64_t i = 0; i < weight.inputs; ++i) {
      const auto group = weight.form.group == 0 ? 0 : static_cast<size_t>(i / group_inputs);
      const int quant = quants_[static_cast<size_t>(i)];
      to[i] = weight.form.offsets ? static_cast<float>(quant) * scales_[group] + offsets_[group]
                                  : static_cast<float>(quant - weight.form.zero) * scales_[group];
    }
  }

 private:
  std::vector<uint8_t> quants_;
  std::vector<float> scales_;
  std::vector<float> offsets_;
};

void read_row(const Matrix& source, int64_t row, float* to) {
  if (source.type == Element::float32) {
    const auto* from = static_cast<const float*>(source.data) + row * source.stride;
    std::copy(from, from + source.columns, to);
  } else {
    const auto* from = static_cast<const uint16_t*>(source.data) + row * source.stride;
    std::transform(from, from + source.columns, to, widened);
  }
}

void write_row(const float* from, const Matrix& target, int64_t row) {
  if (target.type == Element::float32) {
    std::copy(from, from + target.columns, static_cast<float*>(target.data) + row * target.stride);
  } else {
    std::transform(from, from + target.columns, static_cast<uint16_t*>(target.data) + row * target.stride, narrowed);
  }
}

// function(output, floats, row) with buffers of one output, for each row, on all threads.
template <typename Function>
void for_outputs(const QuantizedWeight& weight, int64_t rows, const Function& function) {
  for_rows(rows, weight.inputs, [&](int64_t first, int64_t last) {
    Output output(weight);
    std::vector<float> floats(static_cast<size_t>(weight.inputs));
    for (int64_t row = first; row < last; ++row) function(output, floats.data(), row);
  });
}

}  // namespace

void quantize(const QuantizedWeight& weight, const Scheme& scheme, int64_t first, int64_t rows, const Matrix& source) {
  for_outputs(weight, rows, [&](Output& output, float* floats, int64_t row) {
    read_row(source, row, floats);
    scheme.quantize(floats, weight.inputs, output.at(0, 0));
    output.store(weight, first + row);
  });
}

void pack_blocks(const QuantizedWeight& weight, const Scheme& scheme, int64_t first, int64_t rows, const uint8_t* blocks) {
  const int64_t row_bytes = weight.inputs / scheme.block_inputs * scheme.block_bytes;
  for_outputs(weight, rows, [&](Output& output, float*, int64_t row) {
    const uint8_t* block = blocks + row * row_bytes;
    for (int64_t input = 0; input < weight.inputs; input += scheme.block_inputs, block += scheme.block_bytes) {
      scheme.decode(block, output.at(input, input / weight.form.group));
    }
    output.store(weight, first + row);
  });
}

void dequantize(const QuantizedWeight& weight, int64_t first, int64_t rows, const Matrix& target) {
  for_outputs(weight, rows, [&](Output& output, float* floats, int64_t row) {
    output.load(weight, first + row);
    output.values(weight, floats);
    write_row(floats, target, row);
  });
}

void embedding_quantized(const QuantizedEmbedding& args, int64_t rows) {
  check_tokens(args.token_ids, rows, args.weight.outputs);
  for_outputs(args.weight, rows, [&](Output& output, float* floats, int64_t row) {
    output.load(args.weight, args.token_ids[row]);
    output.values(args.weight, floats);
    write_row(floats, args.out, row);
  });
}

int64_t scratch_bytes(const QuantizedWeight& weight) { return activations(nullptr, weight).row_bytes * quantized_rows; }

namespace {

// Rows up to quantized_rows.
void multiply_rows(const QuantizedLinear& args, int64_t rows) {
  for_rows(rows, args.x.columns, [&](int64_t first, int64_t last) { kernels().quantize_rows(args, first, last); });
  const int64_t panels = args.weight.panels();
  const int64_t per_item = std::max<int64_t>(1, bytes_per_item / args.weight.panel_bytes() / 2) * 2;
  for_rows((panels + per_item - 1) / per_item, elements_per_item, [&](int64_t item, int64_t) {
    kernels().linear_quantized(args, {0, rows, item * per_item, std::min((item + 1) * per_item, panels)});
  });
}

Matrix from_row(const Matrix& matrix, int64_t row) {
  Matrix part = matrix;
  part.data = static_cast<char*>(matrix.data) + row * matrix.stride * element_size(matrix.type);
  return part;
}

}  // namespace

void linear_quantized(const QuantizedLinear& args, int64_t rows) {
  for (int64_t row = 0; row < rows; row += quantized_rows) {
    QuantizedLinear part = args;
    part.x = from_row(args.x, row);
    part.out = from_row(args.out, row);
    multiply_rows(part, std::min(quantized_rows, rows - row));
  }
}

}  // namespace core::cpu
