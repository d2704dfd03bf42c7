// SPDX-License-Identifier: MIT
// Decoding a weight, and encoding a weight and an update anew, with DoRA or without, against loops over the format's
// own encoder.
#include "lora/weight/requantize.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "lora/adapter/dora.hpp"
#include "lora/weight/merge_undo.hpp"
#include "support/bits.hpp"
#include "support/message_of.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace requantize_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

template <class Format>
std::vector<std::uint8_t> blocks_of(const QuantizedWeight<Format>& weight) {
  std::vector<std::uint8_t> blocks(
      static_cast<std::size_t>(formats::row_bytes<Format>(weight.in_features()) * weight.out_features()));
  weight.write_blocks(blocks);
  return blocks;
}

template <class Format>
class Requantize : public ::testing::Test {
 protected:
  static constexpr Index d = 21;
  static constexpr Index k = 3 * (Format::block_size == 1 ? 32 : Format::block_size);
  using Weight = QuantizedWeight<Format>;
  const Matrix<float> w = random_matrix<float>(d, k, 1);
  const Matrix<float> a = random_matrix<float>(3, k, 2);
  const Matrix<float> b = random_matrix<float>(d, 3, 3);
  const Weight weight = Weight::quantize(view_of(w));

  [[nodiscard]] LowRankUpdate<float> update(float scale) const { return {view_of(a), view_of(b), scale}; }
  [[nodiscard]] static Matrix<float> values_of(const Weight& of) {
    Matrix<float> values(d, k);
    read_back(of, view_of(values));
    return values;
  }
};
using Encodable = ::testing::Types<formats::F16, formats::BF16, formats::Q4_0, formats::Q4_1, formats::Q5_0,
                                   formats::Q5_1, formats::Q8_0, formats::NF4<64>, formats::FP4<64>>;
TYPED_TEST_SUITE(Requantize, Encodable);

TYPED_TEST(Requantize, EncodesTheSumAndReportsWhatOfTheUpdateSurvived) {
  const Matrix<float> before = this->values_of(this->weight);
  for (const float scale : {1e-5F, 0.01F, 0.5F}) {
    Matrix<float> delta(this->d, this->k);
    write_delta(this->update(scale), view_of(delta));
    const Matrix<float> sum = before + delta;
    const auto result = requantize(this->weight, this->update(scale));
    EXPECT_EQ(blocks_of(result.weight), blocks_of(TestFixture::Weight::quantize(view_of(sum))));
    const Matrix<double> change = (this->values_of(result.weight).template cast<double>() - before.cast<double>());
    const Matrix<double> wide = delta.cast<double>();
    double dot = 0, size = 0, error = 0;
    for (Index i = 0; i < wide.size(); ++i) {
      dot += change.data()[i] * wide.data()[i];
      size += wide.data()[i] * wide.data()[i];
      error += std::pow(change.data()[i] - wide.data()[i], 2);
    }
    EXPECT_NEAR(result.report.update_norm, std::sqrt(size), 1e-12 * std::sqrt(size));
    EXPECT_NEAR(result.report.error_norm, std::sqrt(error), 1e-12 * std::sqrt(error));
    EXPECT_NEAR(result.report.survived, dot / size, 1e-12 * (1 + std::abs(dot / size)));
    const auto old_blocks = blocks_of(this->weight);
    const auto new_blocks = blocks_of(result.weight);
    std::int64_t changed = 0;
    for (std::size_t at = 0; at < old_blocks.size(); at += TypeParam::block_bytes) {
      bool same = true;
      for (std::size_t i = at; i < at + TypeParam::block_bytes; ++i) same = same && old_blocks[i] == new_blocks[i];
      changed += same ? 0 : 1;
    }
    EXPECT_EQ(result.report.changed_blocks, changed);
    EXPECT_EQ(result.report.blocks, static_cast<std::int64_t>(old_blocks.size()) / TypeParam::block_bytes);
    if (scale > 0.1F) {
      EXPECT_NEAR(result.report.survived, 1.0, 0.05);
    }
  }
}

TYPED_TEST(Requantize, TheGivenWeightAndBlocksOutsideTheUpdateStay) {
  const auto before = blocks_of(this->weight);
  Matrix<float> one_row = Matrix<float>::Zero(this->d, 3);
  one_row.row(4) = this->b.row(4);
  const auto result = requantize(this->weight, {view_of(this->a), view_of(one_row), 0.5F});
  EXPECT_EQ(blocks_of(this->weight), before);
  auto after = blocks_of(result.weight);
  const auto row = static_cast<std::ptrdiff_t>(formats::row_bytes<TypeParam>(this->k));
  EXPECT_NE(after, before);
  std::copy(before.begin() + 4 * row, before.begin() + 5 * row, after.begin() + 4 * row);
  EXPECT_EQ(after, before);
  const auto nothing = requantize(this->weight, {view_of(this->a), view_of(one_row), 0.0F});
  EXPECT_EQ(blocks_of(nothing.weight), before);
  EXPECT_EQ(nothing.report.changed_blocks, 0);
  EXPECT_EQ(nothing.report.survived, 0.0);
  EXPECT_EQ(nothing.report.error_norm, 0.0);
}

// DoRA: f (.) (W + s B A) with f = m / |W + s B A|, by loops in double.
TYPED_TEST(Requantize, EncodesWhatDoraMakesOfTheSum) {
  const Matrix<float> before = this->values_of(this->weight);
  const auto update = this->update(0.5F);
  const RowVector<float> magnitude = random_matrix<float>(1, this->d, 4).cwiseAbs() + RowVector<float>::Ones(this->d);
  const Matrix<double> added =
      before.cast<double>() + 0.5 * this->b.template cast<double>() * this->a.template cast<double>();
  const auto factors = dora_factors<float>(this->weight, update, magnitude);
  ASSERT_EQ(static_cast<Index>(factors.size()), this->d);
  Matrix<double> target(this->d, this->k);
  for (Index i = 0; i < this->d; ++i) {
    const double norm = added.row(i).norm();
    const double factor = static_cast<double>(magnitude[i]) / norm;
    EXPECT_NEAR(static_cast<double>(factors[static_cast<std::size_t>(i)]), factor, 1e-5 * factor);
    target.row(i) = factor * added.row(i);
  }
  const auto result = requantize(this->weight, update, factors);
  const Matrix<double> after = this->values_of(result.weight).template cast<double>();
  const Matrix<float> rounded = target.cast<float>();
  const Matrix<double> best =
      this->values_of(TestFixture::Weight::quantize(view_of(rounded))).template cast<double>() - target;
  const double step = 2 * best.cwiseAbs().maxCoeff() + 1e-5 * target.cwiseAbs().maxCoeff();
  EXPECT_LE((after - target).cwiseAbs().maxCoeff(), step);

  const Matrix<double> delta = target - before.cast<double>();
  const Matrix<double> change = after - before.cast<double>();
  const double survived = change.cwiseProduct(delta).sum() / delta.squaredNorm();
  EXPECT_NEAR(result.report.update_norm, delta.norm(), 1e-5 * delta.norm());
  EXPECT_NEAR(result.report.error_norm, (after - target).norm(), 1e-4 * delta.norm());
  EXPECT_NEAR(result.report.survived, survived, 1e-4);
  EXPECT_NEAR(result.report.survived, 1.0, 0.1);
}

TYPED_TEST(Requantize, AMagnitudeOfTheNormsChangesNothingByItself) {
  const std::vector<float> ones(static_cast<std::size_t>(this->d), 1.0F);
  const auto with = requantize(this->weight, this->update(0.5F), ones);
  const Matrix<float> without = this->values_of(requantize(this->weight, this->update(0.5F)).weight);
  EXPECT_LE((this->values_of(with.weight) - without).cwiseAbs().maxCoeff(), 0.02F * without.cwiseAbs().maxCoeff());
  const auto nothing = requantize(this->weight, this->update(0.0F), ones);
  EXPECT_EQ(blocks_of(nothing.weight), blocks_of(this->weight));
  EXPECT_EQ(nothing.report.changed_blocks, 0);
}

// A factor alone is a change, and rows without one keep their blocks.
TYPED_TEST(Requantize, OutputFactorsScaleTheirRowsAlone) {
  std::vector<float> factors(static_cast<std::size_t>(this->d), 1.0F);
  factors[4] = 2.0F;
  const auto result = requantize(this->weight, this->update(0.0F), factors);
  const Matrix<float> before = this->values_of(this->weight), after = this->values_of(result.weight);
  for (Index i = 0; i < this->d; ++i) {
    if (i != 4) {
      EXPECT_TRUE(same_bits(after.row(i), before.row(i)));
    }
  }
  EXPECT_LE((after.row(4) - 2 * before.row(4)).cwiseAbs().maxCoeff(), 0.1F * before.row(4).cwiseAbs().maxCoeff());
  EXPECT_NEAR(result.report.update_norm, static_cast<double>(before.row(4).norm()), 1e-4);
  EXPECT_NEAR(result.report.survived, 1.0, 0.05);
}

TYPED_TEST(Requantize, RefusesFactorsThatDoNotFitOrAreNotFinite) {
  std::vector<float> factors(static_cast<std::size_t>(this->d), 1.0F);
  factors.pop_back();
  EXPECT_EQ(
      testing::message_of<ShapeError>([&] { static_cast<void>(requantize(this->weight, this->update(1), factors)); }),
      "requantize: output_factors: expected 21 numbers, got 20");
  factors.push_back(std::numeric_limits<float>::infinity());
  EXPECT_EQ(
      testing::message_of<StateError>([&] { static_cast<void>(requantize(this->weight, this->update(1), factors)); }),
      "requantize: f*(W + s*B*A): expected numbers within the range of " + std::string(TypeParam::name) +
          ", got another in row 20");
  EXPECT_EQ(testing::message_of<ShapeError>(
                [&] { static_cast<void>(dora_factors<float>(this->weight, this->update(1), RowVector<float>(20))); }),
            "dora_factors: magnitude: expected 1 x 21, got 1 x 20");
}

TYPED_TEST(Requantize, RefusesWhatDoesNotFitAndWhatIsNotFinite) {
  EXPECT_THROW(static_cast<void>(requantize(this->weight, {view_of(this->a).middle_rows(0, 2), view_of(this->b), 1})),
               ShapeError);
  EXPECT_THROW(static_cast<void>(requantize(this->weight, {view_of(this->a), view_of(this->b).middle_rows(0, 2), 1})),
               ShapeError);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Matrix<float> broken = this->a;
    broken(1, 5) = bad;
    const std::string message = testing::message_of<StateError>([&] {
      static_cast<void>(requantize(this->weight, {view_of(broken), view_of(this->b), 1.0F}));
    });
    EXPECT_EQ(message, "requantize: W + s*B*A: expected numbers within the range of " + std::string(TypeParam::name) +
                           ", got another in row 0");
  }
}

TYPED_TEST(Requantize, TheDecodedWeightHasTheValuesAndCanBeMergedInto) {
  PackedWeight<float> packed = dequantized(this->weight);
  Matrix<float> values(this->d, this->k);
  read_back(packed, view_of(values));
  EXPECT_TRUE(same_bits(values, this->values_of(this->weight)));
  const auto undo = MergeUndo<float>::merge("test", packed, this->update(0.5F));
  read_back(packed, view_of(values));
  EXPECT_FALSE(same_bits(values, this->values_of(this->weight)));
  undo.unmerge(packed);
  read_back(packed, view_of(values));
  EXPECT_TRUE(same_bits(values, this->values_of(this->weight)));
}

}  // namespace
}  // namespace requantize_test
}  // namespace lora
