// The paged cache: writing to it, and attention over it.
#include <algorithm>
#include <cmath>

#include "../threads.hpp"
#include "check.hpp"

namespace core::cpu::testing {
namespace {

// A batch of sequences, each of so many tokens of which the last `queries` are this step's.
struct Batch {
  struct Sequence {
    int64_t length, queries;
  };
  std::vector<Sequence> sequences;
  int64_t num_kv_heads = 2;
  int64_t group = 3;
  int64_t head_dim = 64;
  int64_t block_size = 16;
  int64_t window = 0;
  Element type = Element::float32;
  Element cache_type = Element::float32;

  int64_t num_heads() const { return num_kv_heads * group; }
  std::string text() const {
    return "head_dim " + std::to_string(head_dim) + ", group " + std::to_string(group) + ", block_size " +
           std::to_string(block_size) + ", window " + std::to_string(window) + ", " + name_of(type) + " over " +
           name_of(cache_type);
  }
};

// The batch's cache with its blocks in a mixed order. Slots that no sequence has hold NaN.
class Paged {
 public:
  explicit Paged(const Batch& batch) : batch_(batch), key_(cache_rows()), value_(cache_rows()), tables_(table()) {}

  KVCache cache() const {
    const auto data = [](const Rows& rows) { return const_cast<void*>(rows.data()); };
    return {data(key_), data(value_), batch_.cache_type, batch_.num_kv_heads, batch_.head_dim, batch_.block_size};
  }
  const Rows& key() const { return key_; }
  const Rows& value() const { return value_; }
  const int32_t* tables() const { return tables_.data(); }
  int64_t blocks_each() const {
    int64_t longest = 1;
    for (const auto& sequence : batch_.sequences) longest = std::max(longest, sequence.length);
    return (longest + batch_.block_size - 1) / batch_.block_size;
  }
  int64_t num_blocks() const { return blocks_each() * static_cast<int64_t>(batch_.sequences.size()) + 1; }

  // Writes all positions of all sequences, drawn anew from the seed; the last slot is skipped.
  void fill(uint64_t seed) {
    std::vector<int32_t> slots;
    for (size_t seq = 0; seq < batch_.sequences.size(); ++seq) {
      for (int64_t i = 0; i < batch_.sequences[seq].length; ++i) {
        const int32_t block = tables_.data()[static_cast<int64_t>(seq) * blocks_each() + i / batch_.block_size];
        slots.push_back(static_cast<int32_t>(block * batch_.block_size + i % batch_.block_size));
      }
    }
    slots.push_back(-1);
    const auto tokens = static_cast<int64_t>(slots.size());
    const int64_t columns = batch_.num_kv_heads * batch_.head_dim;
    const Rows keys = Rows::random(tokens, columns, batch_.type, seed);
    const Rows values = Rows::random(tokens, columns, batch_.type, seed + 1);
    const Numbers<int32_t> mapping(slots);
    kv_write({keys.data(), values.data(), keys.matrix().stride, values.matrix().stride, batch_.type, mapping.data(),
              tokens, cache()});
  }

 private:
  // As many elements as the cache's layout has: heads filled up to whole panels, and a scale a token where it is int8.
  Rows cache_rows() const {
    const KVCache one{nullptr, nullptr, batch_.cache_type, 1, batch_.head_dim, batch_.block_size};
    const int64_t width = one.head_bytes() / batch_.block_size / element_size(batch_.cache_type);
    return {num_blocks() * batch_.num_kv_heads * batch_.block_size, width, batch_.cache_type, 0};
  }
  // Block 0 is nobody's; the others are dealt out from both ends.
  std::vector<int32_t> table() const {
    std::vector<int32_t> blocks;
    int64_t low = 1;
    int64_t high = num_blocks() - 1;
    while (low <= high) {
      blocks.push_back(static_cast<int32_t>(high--));
      if (low <= high) blocks.push_back(static_cast<int32_t>(low++));
    }
    return blocks;
  }

  Batch batch_;
  Rows key_;
  Rows value_;
  Numbers<int32_t> tables_;
};

int64_t num_queries(const Batch& batch) {
  int64_t sum = 0;
  for (const auto& sequence : batch.sequences) sum += sequence.queries;
  return sum;
}

Rows attend(const Batch& batch, const Paged& paged, const Rows& query) {
  std::vector<int32_t> starts{0};
  std::vector<int32_t> lengths;
  for (const auto& sequence : batch.sequences) {
    starts.push_back(starts.back() + static_cast<int32_t>(sequence.queries));
    lengths.push_back(static_cast<int32_t>(sequence.length));
  }
  const Numbers<int32_t> query_start(starts);
  const Numbers<int32_t> seq_lens(lengths);
  Rows out(query.rows(), query.columns(), batch.type);
  paged_attention({query.data(), out.data(), query.matrix().stride, out.matrix().stride, batch.type, paged.tables(),
                   paged.blocks_each(), query_start.data(), seq_lens.data(),
                   static_cast<int64_t>(batch.sequences.size()), batch.num_heads(), batch.window,
                   1.0f / std::sqrt(static_cast<float>(batch.head_dim)), paged.cache()});
  return out;
}

// A result is a mean of values, which are below 6: within 64 units of that, for the scores' errors too. Each side rounds
// it to its type once. Where the products are of bfloat16, each side rounds the weights to it as well: half a unit each.
void check_batch(const Batch& batch) {
  Paged paged(batch);
  paged.fill(7);
  const Rows query = Rows::random(num_queries(batch), batch.num_heads() * batch.head_dim, batch.type, 9);
  const Rows found = attend(batch, paged, query);
  CHECK(paged.key().intact() && paged.value().intact(), batch.text());
  const Reference scalar;
  const Rows wanted = attend(batch, paged, query);
  const bool narrow = batch.type == Element::bfloat16 && batch.cache_type != Element::float32;
  const double units = 64 + (narrow ? unit(Element::bfloat16) / float_unit : 0);
  expect_close(found, wanted, 2, units, [](int64_t, int64_t) { return 6.0; }, batch.text());
}

// Lengths about a tile's and a block's ends, decodes and prefills, and a sequence that has no part in the step.
const std::vector<Batch::Sequence> mixed = {{37, 37}, {65, 1}, {16, 1}, {1, 1}, {17, 2}, {129, 29}, {5, 0}, {130, 1}};

TEST(attention_is_the_scalar_tiers) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    for (const Element cache : {Element::float32, Element::bfloat16, Element::int8}) {
      check_batch({mixed, 2, 3, 64, 16, 0, type, cache});
      check_batch({mixed, 2, 3, 21, 10, 20, type, cache});
    }
    for (const int64_t head_dim : {8, 20, 80, 256}) check_batch({mixed, 1, 2, head_dim, 16, 0, type, type});
    for (const int64_t block_size : {1, 7, 64, 100}) check_batch({mixed, 1, 2, 24, block_size, 0, type, type});
    for (const int64_t window : {1, 16, 63, 65, 1000}) check_batch({mixed, 1, 1, 16, 16, window, type, type});
    check_batch({mixed, 1, 71, 16, 16, 0, type, type});
  }
}

// 300 keys are two splits, which threads share where a chunk alone makes too few items.
TEST(a_row_of_attention_is_the_same_bits_alone_batched_chunked_and_threaded) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    const Batch whole{{{300, 300}}, 2, 3, 40, 16, 0, type, type};
    Paged paged(whole);
    paged.fill(11);
    const Rows query = Rows::random(300, whole.num_heads() * whole.head_dim, type, 12);
    const Rows expected = attend(whole, paged, query);
    set_num_threads(3);
    const Rows threaded = attend(whole, paged, query);
    for (int64_t row = 0; row < 300; ++row) CHECK(expected.same_bits(row, threaded, row), std::to_string(row));
    for (const Batch::Sequence part : {Batch::Sequence{300, 1}, {64, 1}, {65, 2}, {100, 37}}) {
      Batch chunk = whole;
      chunk.sequences = {part};
      Rows own(part.queries, query.columns(), type);
      const int64_t first = part.length - part.queries;
      for (int64_t row = 0; row < part.queries; ++row) {
        for (int64_t i = 0; i < query.columns(); ++i) own.set(row, i, query.at(first + row, i));
      }
      const Rows found = attend(chunk, paged, own);
      for (int64_t row = 0; row < part.queries; ++row) {
        CHECK(found.same_bits(row, expected, first + row), "position " + std::to_string(first + row));
      }
    }
    set_num_threads(1);
  }
}

void check_write(const Batch& batch) {
  Paged found(batch);
  found.fill(13);
  const Reference scalar;
  Paged wanted(batch);
  wanted.fill(13);
  CHECK(found.key().intact() && found.value().intact(), batch.text());
  for (int64_t row = 0; row < wanted.key().rows(); ++row) {
    CHECK(found.key().same_bits(row, wanted.key(), row), batch.text());
    CHECK(found.value().same_bits(row, wanted.value(), row), batch.text());
  }
}

// Every tier rounds to the cache's type in the same way, and leaves alone what is nobody's.
TEST(the_kv_write_is_the_scalar_tiers_bit_by_bit) {
  for (const Element type : {Element::float32, Element::bfloat16}) {
    for (const Element cache : {Element::float32, Element::bfloat16, Element::int8}) {
      for (const int64_t block_size : {7, 16}) check_write({mixed, 3, 1, 21, block_size, 0, type, cache});
    }
  }
}

}  // namespace
}  // namespace core::cpu::testing
