// Batches whose rows choose their adapters.
#include <array>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "layers/multi_linear_kinds.hpp"
#include "support/bits.hpp"
#include "support/linear_oracle.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::random_config;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using testing::Wide;

constexpr Index n = 13, d = 70, k = 23;
const std::vector<std::string> names = {"a", "b", "c"};
// Interleaved, with a choice nobody makes ("b" alone, twice "c" at the ends) and rows of the base.
const std::vector<Index> interleaved = {2, -1, 0, 0, 1, -1, 0, 2, 0, -1, 0, 0, 2};
const std::vector<Index> together = {1, 1, 1, 1, -1, -1, 0, 0, 0, 0, 0, 2, 2};

template <class Kind>
class MultiLinearRows : public ::testing::Test {
 protected:
  using Element = typename Kind::Scalar;

  MultiLinearRows() {
    for (std::size_t i = 0; i < names.size(); ++i) {
      made.layer().add_adapter(names[i], random_config(2 + 3 * static_cast<Index>(i)), i);
    }
    made.layer().set_scale("b", -1.5);
  }

  testing::MultiLayerUnderTest<Kind> made{random_matrix<Element>(d, k, 1), random_vector<Element>(d, 2)};
  Matrix<Element> x = random_matrix<Element>(n, k, 3);
};
TYPED_TEST_SUITE(MultiLinearRows, testing::LayerKinds, testing::LayerKindNames);

// Both answers hold the same c = bias + W0 x and the same U. One adds r products to c in a chain of r roundings, the
// other sums them by themselves and adds the sum: each is within r + 1 units of round-off eps / 2 of the exact sum,
// relative to |c| + sum |U F| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
TYPED_TEST(MultiLinearRows, AnswerAsTheLayerWithThatAdapterActiveWithinTheRoundingOfItsRanks) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  const auto& batch = this->x;
  layer.set_adapters({});
  const Matrix<Scalar> base = layer.infer(batch);
  for (const auto& choices : {interleaved, together}) {
    const Matrix<Scalar> y = layer.infer(batch, choices);
    ASSERT_EQ(y.rows(), n);
    for (Index i = 0; i < n; ++i) {
      const Index choice = choices[static_cast<std::size_t>(i)];
      if (choice < 0) {
        EXPECT_TRUE(same_bits(y.row(i), base.row(i))) << i;
        continue;
      }
      const std::string& name = names[static_cast<std::size_t>(choice)];
      layer.set_adapter(name);
      const RowVector<Scalar> alone = layer.infer(RowVector<Scalar>(batch.row(i)));
      const auto& adapter = layer.adapter(name);
      const Matrix<Wide> u =
          (batch.row(i).template cast<Wide>() * adapter.A().transpose().template cast<Wide>()).cwiseAbs();
      const Matrix<Wide> magnitude =
          base.row(i).template cast<Wide>().cwiseAbs() + std::abs(static_cast<Wide>(layer.scaling(name))) * u *
                                                             adapter.B().transpose().template cast<Wide>().cwiseAbs();
      EXPECT_TRUE(testing::within_rounding(y.row(i), alone.template cast<Wide>(), magnitude, adapter.rank() + 2)) << i;
      EXPECT_FALSE(same_bits(y.row(i), base.row(i))) << i;
    }
  }
}

TYPED_TEST(MultiLinearRows, ARowsBitsDoNotDependOnTheOtherRows) {
  using Scalar = typename TypeParam::Scalar;
  const auto& layer = this->made.layer();
  for (const auto& choices : {interleaved, together}) {
    const Matrix<Scalar> y = layer.infer(this->x, choices);
    for (Index i = 0; i < n; ++i) {
      const std::array<Index, 1> choice = {choices[static_cast<std::size_t>(i)]};
      const RowVector<Scalar> row = this->x.row(i);
      EXPECT_TRUE(same_bits(layer.infer(row, choice), RowVector<Scalar>(y.row(i)))) << i;
    }
  }
}

TYPED_TEST(MultiLinearRows, NamesChooseAsPositionsDo) {
  using Scalar = typename TypeParam::Scalar;
  const auto& layer = this->made.layer();
  std::vector<std::string> strings;
  for (const Index choice : interleaved) {
    strings.push_back(choice < 0 ? "__base__" : names[static_cast<std::size_t>(choice)]);
  }
  const std::vector<std::string_view> views(strings.begin(), strings.end());
  const std::vector<int> ints(interleaved.begin(), interleaved.end());
  const Matrix<Scalar> expected = layer.infer(this->x, interleaved);
  EXPECT_TRUE(same_bits(layer.infer(this->x, strings), expected));
  EXPECT_TRUE(same_bits(layer.infer(this->x, views), expected));
  EXPECT_TRUE(same_bits(layer.infer(this->x, ints), expected));
}

TYPED_TEST(MultiLinearRows, ReadsAnyStridesAndWritesIntoAnyRows) {
  using Scalar = typename TypeParam::Scalar;
  const auto& layer = this->made.layer();
  const Matrix<Scalar> expected = layer.infer(this->x, interleaved);
  Workspace workspace;
  Matrix<Scalar> wide_x(n, 2 * k);
  wide_x.leftCols(k) = this->x;
  Matrix<Scalar> wide_y = Matrix<Scalar>::Zero(n, 2 * d);
  layer.infer(wide_x.leftCols(k), interleaved, wide_y.leftCols(d), workspace);
  EXPECT_TRUE(same_bits(Matrix<Scalar>(wide_y.leftCols(d)), expected));
  EXPECT_TRUE(wide_y.rightCols(d).isZero(0));
  const testing::ColumnMajor<Scalar> columns = this->x;
  EXPECT_TRUE(same_bits(layer.infer(columns, interleaved), expected));  // gathered, so read alike
  EXPECT_EQ(layer.infer(Matrix<Scalar>(0, k), std::vector<Index>()).rows(), 0);
}

TYPED_TEST(MultiLinearRows, LoraBiasIsThatOfTheRowsAdapter) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  LoraConfig config = random_config(2);
  config.lora_bias = true;
  layer.add_adapter("biased", config, 9);
  layer.set_factors("biased", layer.adapter("biased").A(), Matrix<Scalar>::Zero(d, 2));
  const auto lora_bias = random_vector<Scalar>(d, 7);
  layer.set_lora_bias("biased", lora_bias);
  std::vector<std::string> choices(n, "__base__");
  const Matrix<Scalar> base = layer.infer(this->x, choices);
  choices[4] = "biased";
  const Matrix<Scalar> y = layer.infer(this->x, choices);
  Matrix<Scalar> expected = base;
  expected.row(4) += lora_bias;  // s = 1
  EXPECT_TRUE(same_bits(y, expected));
}

TYPED_TEST(MultiLinearRows, HaveTheSameBitsForAnyNumberOfWorkers) {
  using Scalar = typename TypeParam::Scalar;
  const auto& layer = this->made.layer();
  const Matrix<Scalar> expected = layer.infer(this->x, interleaved);
  for (const int workers : {2, 5}) {
    testing::ThreadExecutor executor(workers);
    Workspace workspace(executor);
    Matrix<Scalar> y(n, d);
    layer.infer(this->x, interleaved, y, workspace);
    EXPECT_TRUE(same_bits(y, expected));
  }
}

// A NaN in one tenant's adapter must not reach another's rows.
TYPED_TEST(MultiLinearRows, ABrokenAdapterSpoilsItsOwnRowsOnly) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  const Matrix<Scalar> healthy = layer.infer(this->x, interleaved);
  layer.set_factors("a", Matrix<Scalar>::Constant(2, k, std::numeric_limits<Scalar>::quiet_NaN()),
                    layer.adapter("a").B());
  const Matrix<Scalar> y = layer.infer(this->x, interleaved);
  for (Index i = 0; i < n; ++i) {
    if (interleaved[static_cast<std::size_t>(i)] == 0) {
      EXPECT_TRUE(y.row(i).array().isNaN().all());
    } else {
      EXPECT_TRUE(same_bits(y.row(i), healthy.row(i)));
    }
  }
}

TYPED_TEST(MultiLinearRows, WhatCannotBeChosenIsRefused) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  const auto& batch = this->x;
  EXPECT_THROW((void)layer.infer(batch, std::vector<Index>(n - 1, 0)), ShapeError);
  EXPECT_THROW((void)layer.infer(batch, std::vector<Index>(n, 3)), ConfigError);
  EXPECT_THROW((void)layer.infer(batch, std::vector<Index>(n, -2)), ConfigError);
  EXPECT_THROW((void)layer.infer(batch, std::vector<std::string>(n, "x")), ConfigError);
  EXPECT_THROW((void)layer.infer(Matrix<Scalar>(batch.leftCols(k - 1)), interleaved), ShapeError);
  Workspace workspace;
  Matrix<Scalar> y(n, d + 1);
  EXPECT_THROW(layer.infer(batch, interleaved, y, workspace), ShapeError);
  layer.merge({"c"});
  try {
    (void)layer.infer(batch, interleaved);
    ADD_FAILURE() << "chose rows while merged";
  } catch (const StateError& error) {
    EXPECT_NE(std::string(error.what()).find("\"c\" merged"), std::string::npos) << error.what();
  }
}

TYPED_TEST(MultiLinearRows, WhileAdaptersAreDisabledAllRowsAreTheBases) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  layer.disable_adapters();
  const Matrix<Scalar> base = layer.infer(this->x);
  EXPECT_TRUE(same_bits(layer.infer(this->x, interleaved), base));
  EXPECT_THROW((void)layer.infer(this->x, std::vector<std::string>(n, "x")), ConfigError);
}

}  // namespace
}  // namespace lora
