// Merging with a factor for each output, as DoRA asks for: W <- f (.) (W + s*B*A), as exact and atomic as without.
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <utility>
#include <vector>

#include "lora/weight/merge_undo.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"
#include "weight/merge_target.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

template <class WeightType>
using Target = testing::MergeTarget<WeightType>;

template <class WeightType>
class ScaledMerge : public ::testing::Test {};
TYPED_TEST_SUITE(ScaledMerge, testing::MergeTargetKinds);

template <class Number>
using Factors = std::vector<Number>;

// Usual for DoRA: within a few percent of 1.
template <class Number>
Factors<Number> near_one(Index count) {
  const auto spread = testing::random_vector<Number>(count, 11, 0.05);
  Factors<Number> factors;
  for (const Number x : spread) factors.push_back(Number(1) + x);
  return factors;
}

template <class Number>
Factors<Number> odd_factors(Index count) {
  using Limits = std::numeric_limits<Number>;
  const Factors<Number> odd = {Number(0),
                               Number(-0.0),
                               Number(-1),
                               Number(1),
                               Number(-0.3),
                               Number(1e-30),
                               Number(1e20),
                               Number(3),
                               Limits::denorm_min(),
                               Limits::min(),
                               Limits::min() / 3,
                               Limits::max() / 1000,
                               -Limits::max() / 1000};
  Factors<Number> factors;
  for (Index j = 0; j < count; ++j) factors.push_back(odd[static_cast<std::size_t>(j) % odd.size()]);
  return factors;
}

template <class Number>
Matrix<Number> scaled_sum(const Matrix<Number>& w, const Matrix<Number>& delta, const Factors<Number>& factors) {
  Matrix<Number> merged = w + delta;
  for (Index j = 0; j < merged.rows(); ++j) merged.row(j) *= factors[static_cast<std::size_t>(j)];
  return merged;
}

// merged = round(round(w + delta) * f); reading back and unmerging give the bits of w.
template <class WeightType, class Number = typename WeightType::Scalar>
void expect_exact(const Matrix<Number>& w, const LowRankUpdate<Number>& update, const Factors<Number>& factors) {
  Target<WeightType> target(w);
  const Matrix<Number> before = target.values();
  Matrix<Number> delta = Matrix<Number>::Zero(w.rows(), w.cols());
  if (update.a.rows > 0) write_delta(update, view_of(delta));
  const auto record = MergeUndo<Number>::merge("test", target.weight, update, factors);
  const Matrix<Number> expected = scaled_sum(w, delta, factors);
  const Matrix<Number> merged = target.values();
  for (Index i = 0; i < w.size(); ++i) {
    if (std::isnan(expected.data()[i])) {
      ASSERT_TRUE(std::isnan(merged.data()[i])) << i;
    } else {
      ASSERT_EQ(testing::bits_of(merged.data()[i]), testing::bits_of(expected.data()[i])) << i;
    }
  }
  Matrix<Number> unmerged(w.rows(), w.cols());
  record.read_unmerged(target.weight, view_of(unmerged));
  EXPECT_TRUE(same_bits(unmerged, before));
  EXPECT_TRUE(same_bits(target.values(), merged));
  record.unmerge(target.weight);
  EXPECT_TRUE(same_bits(target.values(), before));
}

TYPED_TEST(ScaledMerge, RestoresEveryBitWhateverTheSizeOfTheUpdate) {
  using Number = typename TypeParam::Scalar;
  const auto a = random_matrix<Number>(4, 90, 2);
  const auto b = random_matrix<Number>(70, 4, 3);
  for (const double scale : {0.0, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6, 1e30}) {
    SCOPED_TRACE(scale);
    expect_exact<TypeParam>(random_matrix<Number>(70, 90, 1), {view_of(a), view_of(b), static_cast<Number>(scale)},
                            near_one<Number>(70));
  }
}

TYPED_TEST(ScaledMerge, RestoresEveryBitWhateverTheFactors) {
  using Number = typename TypeParam::Scalar;
  const auto a = random_matrix<Number>(3, 90, 2);
  const auto b = random_matrix<Number>(70, 3, 3);
  const auto w = random_matrix<Number>(70, 90, 1);
  for (const double scale : {0.0, 1e-3, 1.0}) {
    const LowRankUpdate<Number> update{view_of(a), view_of(b), static_cast<Number>(scale)};
    expect_exact<TypeParam>(w, update, odd_factors<Number>(70));
    for (const Number factor : odd_factors<Number>(13)) {
      SCOPED_TRACE(factor);
      expect_exact<TypeParam>(w, update, Factors<Number>(70, factor));
      auto one_odd = near_one<Number>(70);  // few enough exceptions for a list
      one_odd[42] = factor;
      expect_exact<TypeParam>(w, update, one_odd);
    }
  }
}

TYPED_TEST(ScaledMerge, RestoresDenormalsZerosOfBothSignsAndWhatIsNotFinite) {
  using Number = typename TypeParam::Scalar;
  using Limits = std::numeric_limits<Number>;
  auto w = random_matrix<Number>(70, 90, 1);
  const std::vector<Number> odd = {
      Number(0),         Number(-0.0),       Limits::denorm_min(), -Limits::denorm_min(), Limits::min(),
      Limits::min() / 3, Limits::infinity(), -Limits::infinity(),  Limits::quiet_NaN(),   Limits::epsilon() / 7};
  const auto a = random_matrix<Number>(3, 90, 2);
  const auto b = random_matrix<Number>(70, 3, 3);
  for (const Index step : {3, 100}) {  // as a copy, and as exceptions
    for (Index i = 0; i < w.size(); i += step) {
      w.data()[i] = odd[static_cast<std::size_t>(i / step) % odd.size()];
    }
    for (const Number scale : {Number(0), Number(1), Limits::min()}) {
      expect_exact<TypeParam>(w, {view_of(a), view_of(b), scale}, near_one<Number>(70));
      expect_exact<TypeParam>(w, {view_of(a), view_of(b), scale}, odd_factors<Number>(70));
    }
  }
}

TYPED_TEST(ScaledMerge, FactorsAloneNeedNoUpdate) {
  using Number = typename TypeParam::Scalar;
  const Matrix<Number> a(0, 90);
  const Matrix<Number> b(70, 0);
  expect_exact<TypeParam>(random_matrix<Number>(70, 90, 1), {view_of(a), view_of(b), Number(1)}, near_one<Number>(70));
  expect_exact<TypeParam>(random_matrix<Number>(70, 90, 1), {view_of(a), view_of(b), Number(1)},
                          odd_factors<Number>(70));
}

TYPED_TEST(ScaledMerge, FactorsOfOneAreNoFactors) {
  using Number = typename TypeParam::Scalar;
  const auto a = random_matrix<Number>(4, 90, 2);
  const auto b = random_matrix<Number>(70, 4, 3);
  Target<TypeParam> with(random_matrix<Number>(70, 90, 1));
  Target<TypeParam> without(random_matrix<Number>(70, 90, 1));
  const LowRankUpdate<Number> update{view_of(a), view_of(b), Number(0.5)};
  (void)MergeUndo<Number>::merge("test", with.weight, update, Factors<Number>(70, Number(1)));
  (void)MergeUndo<Number>::merge("test", without.weight, update);
  EXPECT_TRUE(same_bits(with.values(), without.values()));
}

TYPED_TEST(ScaledMerge, CyclesCopiesAndForgottenFactorsDoNoHarm) {
  using Number = typename TypeParam::Scalar;
  const auto w = random_matrix<Number>(20, 30, 1);
  auto a = random_matrix<Number>(3, 30, 2);
  const auto b = random_matrix<Number>(20, 3, 3);
  Target<TypeParam> target(w);
  for (int cycle = 0; cycle < 5; ++cycle) {
    auto factors = near_one<Number>(20);
    auto first = MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), Number(0.2)}, factors);
    factors.assign(20, Number(9));
    a *= 2;
    const MergeUndo<Number> copy = first;
    const MergeUndo<Number> moved = std::move(first);
    (cycle % 2 == 0 ? copy : moved).unmerge(target.weight);
    ASSERT_TRUE(same_bits(target.values(), w)) << cycle;
  }
}

TYPED_TEST(ScaledMerge, WhatIsNotFiniteIsRefusedAndNothingIsWritten) {
  using Number = typename TypeParam::Scalar;
  using Limits = std::numeric_limits<Number>;
  const auto a = random_matrix<Number>(4, 90, 2);
  const auto b = random_matrix<Number>(70, 4, 3);
  auto w = random_matrix<Number>(70, 90, 1);
  const auto expect_refused = [&](const LowRankUpdate<Number>& update, const Factors<Number>& factors) {
    Target<TypeParam> target(w);
    try {
      (void)MergeUndo<Number>::merge("the operation", target.weight, update, factors);
      ADD_FAILURE() << "merged";
    } catch (const StateError& error) {
      EXPECT_NE(std::string(error.what()).find("the operation"), std::string::npos);
    }
    EXPECT_TRUE(same_bits(target.values(), w));
  };
  const LowRankUpdate<Number> usual{view_of(a), view_of(b), Number(0.1)};
  const LowRankUpdate<Number> dwarfing{view_of(a), view_of(b), Number(1e9)};
  for (const Number bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
    for (const std::size_t row : {std::size_t{0}, std::size_t{35}, std::size_t{69}}) {
      auto factors = near_one<Number>(70);
      factors[row] = bad;
      expect_refused(usual, factors);
      auto broken = b;
      broken(static_cast<Index>(row), 2) = bad;
      expect_refused({view_of(a), view_of(broken), Number(0.1)}, near_one<Number>(70));
      expect_refused({view_of(a), view_of(broken), Number(0.1)}, Factors<Number>(70, Number(0)));
    }
  }
  w(69, 89) = Limits::max() / 2;
  auto factors = near_one<Number>(70);
  factors[69] = Number(3);
  expect_refused(usual, factors);
  expect_refused(dwarfing, factors);
  factors[69] = Number(-3);
  expect_refused(usual, factors);
}

TYPED_TEST(ScaledMerge, TheNumberOfFactorsIsTheNumberOfOutputs) {
  using Number = typename TypeParam::Scalar;
  const auto w = random_matrix<Number>(20, 30, 1);
  const auto a = random_matrix<Number>(3, 30, 2);
  const auto b = random_matrix<Number>(20, 3, 3);
  for (const std::size_t count : {std::size_t{1}, std::size_t{19}, std::size_t{21}, std::size_t{30}}) {
    Target<TypeParam> target(w);
    EXPECT_THROW((void)MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), Number(1)},
                                                Factors<Number>(count, Number(1))),
                 ShapeError);
    EXPECT_TRUE(same_bits(target.values(), w));
  }
}

// As in the test without factors; f within a few percent of 1, and one output of a hundred switched off.
TYPED_TEST(ScaledMerge, HoldsAtMostThirtyPercentOfTheWeight) {
  using Number = typename TypeParam::Scalar;
  Matrix<Number> w(300, 400), a(8, 400), b(300, 8);
  fill_normal(view_of(w), 1.0, RandomStream(1, 1));
  fill_normal(view_of(a), 1.0, RandomStream(1, 2));
  fill_normal(view_of(b), 1.0, RandomStream(1, 3));
  auto factors = near_one<Number>(300);
  for (std::size_t j = 0; j < factors.size(); j += 100) factors[j] = 0;
  const auto w_bytes = static_cast<double>(w.size()) * sizeof(Number);
  for (const double ratio : {0.01, 0.1, 1.0}) {
    Target<TypeParam> target(w);
    const auto record = MergeUndo<Number>::merge(
        "test", target.weight, {view_of(a), view_of(b), static_cast<Number>(ratio / std::sqrt(8.0))}, factors);
    EXPECT_LE(static_cast<double>(record.bytes()), 0.3 * w_bytes) << ratio;
    EXPECT_EQ(record.factor_bytes(), static_cast<std::size_t>(a.size() + b.size() + 2 * 300) * sizeof(Number));
  }
}

TEST(ScaledMergeRecord, EveryOrientationMergesToTheSameBits) {
  const auto w = random_matrix<float>(53, 77, 1);
  const auto a = random_matrix<float>(5, 77, 2);
  const auto b = random_matrix<float>(53, 5, 3);
  Matrix<float> rows = w;
  Eigen::MatrixXf columns = w;
  PackedWeight<float> packed{view_of(w)};
  DenseWeight<float> by_row{view_of(rows)};
  DenseWeight<float> by_column{view_of(columns)};
  const LowRankUpdate<float> update{view_of(a), view_of(b), 0.5F};
  const auto factors = odd_factors<float>(53);
  const auto packed_record = MergeUndo<float>::merge("test", packed, update, factors);
  const auto row_record = MergeUndo<float>::merge("test", by_row, update, factors);
  const auto column_record = MergeUndo<float>::merge("test", by_column, update, factors);
  Matrix<float> from_packed(53, 77);
  read_back(packed, view_of(from_packed));
  EXPECT_TRUE(same_bits(from_packed, rows));
  EXPECT_TRUE(same_bits(columns, rows));
  packed_record.unmerge(packed);
  row_record.unmerge(by_row);
  column_record.unmerge(by_column);
  read_back(packed, view_of(from_packed));
  EXPECT_TRUE(same_bits(from_packed, w));
  EXPECT_TRUE(same_bits(rows, w));
  EXPECT_TRUE(same_bits(columns, w));
}

}  // namespace
}  // namespace lora
