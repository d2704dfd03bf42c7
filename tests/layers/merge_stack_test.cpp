#include "lora/layers/merge_stack.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <vector>

#include "lora/weight/dense.hpp"
#include "lora/weight/packed.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

/// An update and the factors it views.
struct Factors {
  Matrix<float> a, b;
  [[nodiscard]] LowRankUpdate<float> update() const { return {view_of(a), view_of(b), 0.5F}; }
};

std::vector<Factors> some_factors(Index d, Index k) {
  std::vector<Factors> factors;
  for (const std::uint64_t i : {0U, 1U, 2U, 3U}) {
    factors.push_back({random_matrix<float>(2, k, 10 + i), random_matrix<float>(d, 2, 20 + i)});
  }
  factors[2].b *= 1e6F;  // dwarfs the weight, so that its record keeps a copy
  return factors;
}

template <class Weight>
Matrix<float> read(const Weight& weight) {
  Matrix<float> w(weight.out_features(), weight.in_features());
  read_back(weight, view_of(w));
  return w;
}

template <class Weight>
void obeys_the_laws(Weight& weight) {
  const auto factors = some_factors(weight.out_features(), weight.in_features());
  const auto update_of = [&](std::uint64_t key) { return factors[key].update(); };
  const Matrix<float> w0 = read(weight);
  const auto sum_of = [&](const std::vector<std::size_t>& keys) {
    Matrix<float> w = w0;
    Matrix<float> delta(w.rows(), w.cols());
    for (const std::size_t key : keys) {
      write_delta(factors[key].update(), view_of(delta));
      w += delta;
    }
    return w;
  };
  MergeStack<float> stack;
  for (const std::uint64_t key : {3U, 2U, 0U, 1U}) stack.push("test", weight, key, update_of(key));
  EXPECT_TRUE(same_bits(read(weight), sum_of({3, 2, 0, 1})));
  for (std::size_t size = 4; size > 0; --size) {
    EXPECT_EQ(stack.size(), size);
    Matrix<float> base(w0.rows(), w0.cols());
    stack.read_base(weight, view_of(base));
    EXPECT_TRUE(same_bits(base, w0)) << size;
    Matrix<float> transposed(w0.cols(), w0.rows());
    stack.read_base(weight, view_of(transposed).transpose());
    EXPECT_TRUE(same_bits(Matrix<float>(transposed.transpose()), w0)) << size;
    stack.truncate(weight, size - 1);
  }
  EXPECT_TRUE(same_bits(read(weight), w0));

  for (const std::uint64_t key : {3U, 2U, 0U, 1U}) stack.push("test", weight, key, update_of(key));
  stack.remove(
      "test", weight, [](std::uint64_t key) { return key == 2 || key == 1; }, update_of);
  ASSERT_EQ(stack.size(), 2U);
  EXPECT_EQ(stack.key(0), 3U);
  EXPECT_EQ(stack.key(1), 0U);
  EXPECT_TRUE(stack.contains(0));
  EXPECT_FALSE(stack.contains(2));
  EXPECT_TRUE(same_bits(read(weight), sum_of({3, 0})));
  stack.remove(
      "test", weight, [](std::uint64_t) { return false; }, update_of);
  EXPECT_EQ(stack.size(), 2U);
  EXPECT_GT(stack.bytes(), 0U);
  stack.remove(
      "test", weight, [](std::uint64_t) { return true; }, update_of);
  EXPECT_TRUE(stack.empty());
  EXPECT_EQ(stack.bytes(), 0U);
  EXPECT_TRUE(same_bits(read(weight), w0));
}

// Several tiles each: lines longer than a piece, odd sizes, single rows and columns.
TEST(MergeStack, OnAPackedWeight) {
  for (const auto& [d, k] : {std::pair<Index, Index>{7, 5}, {1, 40}, {40, 1}, {130, 300}}) {
    PackedWeight<float> weight(view_of(std::as_const(*std::make_unique<Matrix<float>>(random_matrix<float>(d, k, 1)))));
    obeys_the_laws(weight);
  }
}

TEST(MergeStack, OnTheCallersMemoryOfAnyOrientation) {
  for (const auto& [d, k] : {std::pair<Index, Index>{7, 5}, {1, 40}, {40, 1}, {3, 20000}, {20000, 3}}) {
    auto memory = random_matrix<float>(d, k, 1);
    DenseWeight<float> by_row(view_of(memory));
    obeys_the_laws(by_row);
    Matrix<float> other = memory.transpose();
    DenseWeight<float> by_column(view_of(other).transpose());
    obeys_the_laws(by_column);
    Matrix<float> wide = Matrix<float>::Zero(d, k + 3);
    DenseWeight<float> block(view_of(wide).middle_cols(1, k));
    obeys_the_laws(block);
  }
}

TEST(MergeStack, ARefusedUpdateChangesNothing) {
  auto memory = random_matrix<float>(4, 6, 1);
  const Matrix<float> w0 = memory;
  DenseWeight<float> weight(view_of(memory));
  auto factors = some_factors(4, 6);
  MergeStack<float> stack;
  stack.push("test", weight, 0, factors[0].update());
  const Matrix<float> merged = memory;
  factors[1].a(0, 0) = std::numeric_limits<float>::infinity();
  EXPECT_THROW(stack.push("test", weight, 1, factors[1].update()), StateError);
  EXPECT_EQ(stack.size(), 1U);
  EXPECT_TRUE(same_bits(memory, merged));
  stack.truncate(weight, 0);
  EXPECT_TRUE(same_bits(memory, w0));
}

}  // namespace
}  // namespace lora
