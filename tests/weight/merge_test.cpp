// Merging is in place, exact, atomic, and small.
#include "lora/weight/merge_undo.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <span>
#include <vector>

#include "support/allocation_counter.hpp"
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
class ExactMerge : public ::testing::Test {};

TYPED_TEST_SUITE(ExactMerge, testing::MergeTargetKinds);

TYPED_TEST(ExactMerge, RestoresEveryBitWhateverTheSizeOfTheUpdate) {
  using Number = typename TypeParam::Scalar;
  const auto w = random_matrix<Number>(70, 90, 1);
  const auto a = random_matrix<Number>(4, 90, 2);
  const auto b = random_matrix<Number>(70, 4, 3);
  for (const double scale : {0.0, 1e-30, 1e-9, 1e-3, 1.0, 10.0, 1e3, 1e6, 1e12, 1e30}) {
    SCOPED_TRACE(scale);
    Target<TypeParam> target(w);
    const LowRankUpdate<Number> update{view_of(a), view_of(b), static_cast<Number>(scale)};
    Matrix<Number> delta(w.rows(), w.cols());
    write_delta(update, view_of(delta));
    const auto record = MergeUndo<Number>::merge("test", target.weight, update);
    EXPECT_TRUE(same_bits(target.values(), Matrix<Number>(w + delta)));
    Matrix<Number> unmerged(w.rows(), w.cols());
    record.read_unmerged(target.weight, view_of(unmerged));
    EXPECT_TRUE(same_bits(unmerged, w));
    record.unmerge(target.weight);
    EXPECT_TRUE(same_bits(target.values(), w));
  }
}

// Whose rows the copies of the factors pad.
TYPED_TEST(ExactMerge, RestoresEveryBitOfASizeThatIsAPowerOfTwo) {
  using Number = typename TypeParam::Scalar;
  const auto w = random_matrix<Number>(128, 256, 1);
  const auto a = random_matrix<Number>(16, 256, 2);
  const auto b = random_matrix<Number>(128, 16, 3);
  Target<TypeParam> target(w);
  const LowRankUpdate<Number> update{view_of(a), view_of(b), Number(0.1)};
  Matrix<Number> delta(w.rows(), w.cols());
  write_delta(update, view_of(delta));
  const auto record = MergeUndo<Number>::merge("test", target.weight, update);
  EXPECT_TRUE(same_bits(target.values(), Matrix<Number>(w + delta)));
  record.unmerge(target.weight);
  EXPECT_TRUE(same_bits(target.values(), w));
}

TYPED_TEST(ExactMerge, RestoresDenormalsZerosOfBothSignsAndInfinitiesOfTheWeight) {
  using Number = typename TypeParam::Scalar;
  using Limits = std::numeric_limits<Number>;
  auto w = random_matrix<Number>(20, 30, 1);
  const std::vector<Number> odd = {Number(0),           Number(-0.0),      Limits::denorm_min(), -Limits::denorm_min(),
                                   Limits::min(),       Limits::min() / 3, Limits::infinity(),   -Limits::infinity(),
                                   Limits::quiet_NaN(), Limits::max() / 4, Limits::epsilon()};
  for (Index i = 0; i < w.size(); i += 3) w.data()[i] = odd[static_cast<std::size_t>(i) % odd.size()];
  const auto a = random_matrix<Number>(3, 30, 2);
  const auto b = random_matrix<Number>(20, 3, 3);
  for (const Number scale : {Number(0), Number(1), Limits::denorm_min() * 100, Limits::min(), Number(1e6)}) {
    Target<TypeParam> target(w);
    const auto before = target.values();
    const auto record = MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), scale});
    record.unmerge(target.weight);
    EXPECT_TRUE(same_bits(target.values(), before)) << scale;
  }
}

TYPED_TEST(ExactMerge, ForgettingTheFactorsDoesNoHarm) {
  using Number = typename TypeParam::Scalar;
  const auto w = random_matrix<Number>(20, 30, 1);
  auto a = random_matrix<Number>(3, 30, 2);
  auto b = random_matrix<Number>(20, 3, 3);
  Target<TypeParam> target(w);
  const auto record = MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), Number(1)});
  a.setConstant(7);
  b.resize(0, 0);
  record.unmerge(target.weight);
  EXPECT_TRUE(same_bits(target.values(), w));
}

TYPED_TEST(ExactMerge, AnInfinityOrNaNIsRefusedAndNothingIsWritten) {
  using Number = typename TypeParam::Scalar;
  using Limits = std::numeric_limits<Number>;
  const auto w = random_matrix<Number>(70, 90, 1);
  const auto a = random_matrix<Number>(4, 90, 2);
  for (const Number bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
    for (const Index row : {Index{0}, Index{35}, Index{69}}) {
      auto b = random_matrix<Number>(70, 4, 3);
      b(row, 2) = bad;
      Target<TypeParam> target(w);
      EXPECT_THROW((void)MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), Number(1)}),
                   StateError);
      EXPECT_TRUE(same_bits(target.values(), w));
    }
  }
}

// The update is finite, the sum is not.
TYPED_TEST(ExactMerge, AnOverflowingSumIsRefusedAndNothingIsWritten) {
  using Number = typename TypeParam::Scalar;
  auto w = random_matrix<Number>(20, 30, 1);
  w(19, 29) = std::numeric_limits<Number>::max();
  const Matrix<Number> a = Matrix<Number>::Constant(1, 30, std::numeric_limits<Number>::max() / 2);
  const Matrix<Number> b = Matrix<Number>::Ones(20, 1);
  Target<TypeParam> target(w);
  EXPECT_THROW((void)MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), Number(1)}), StateError);
  EXPECT_TRUE(same_bits(target.values(), w));
}

TYPED_TEST(ExactMerge, RunningOutOfMemoryAtAnyAllocationLeavesTheWeight) {
  using Number = typename TypeParam::Scalar;
  if (!testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  const auto w = random_matrix<Number>(70, 90, 1);
  const auto a = random_matrix<Number>(4, 90, 2);
  const auto b = random_matrix<Number>(70, 4, 3);
  const std::vector<Number> factors(70, Number(0.9));
  for (const double scale : {1.0, 1e6, -1.0, -1e6}) {
    const std::span<const Number> scaled = scale < 0 ? std::span<const Number>(factors) : std::span<const Number>();
    int failures = 0;
    for (long successes = 0; successes < 100; ++successes) {
      Target<TypeParam> target(w);
      const auto before = target.values();
      bool failed = false;
      try {
        const testing::FailingAllocation failing(successes);
        (void)MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), static_cast<Number>(scale)},
                                       scaled);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
      if (!failed) break;
      ++failures;
      EXPECT_TRUE(same_bits(target.values(), before)) << "allocation " << successes;
    }
    EXPECT_GE(failures, 3);
    EXPECT_LT(failures, 100);
  }
}

// Normal W0 and factors, |delta| / |W0| = 0.1 as after a strong fine-tuning; 1 byte a weight and few exceptions.
TYPED_TEST(ExactMerge, HoldsAtMostThirtyPercentOfTheWeight) {
  using Number = typename TypeParam::Scalar;
  Matrix<Number> w(300, 400), a(8, 400), b(300, 8);
  fill_normal(view_of(w), 1.0, RandomStream(1, 1));
  fill_normal(view_of(a), 1.0, RandomStream(1, 2));
  fill_normal(view_of(b), 1.0, RandomStream(1, 3));
  const auto w_bytes = static_cast<double>(w.size()) * sizeof(Number);
  for (const double ratio : {0.01, 0.1, 1.0}) {
    Target<TypeParam> target(w);
    const auto record = MergeUndo<Number>::merge("test", target.weight,
                                                 {view_of(a), view_of(b), static_cast<Number>(ratio / std::sqrt(8.0))});
    EXPECT_LE(static_cast<double>(record.bytes()), 0.3 * w_bytes) << ratio;
    EXPECT_EQ(record.factor_bytes(), static_cast<std::size_t>(a.size() + b.size()) * sizeof(Number));
  }
}

TYPED_TEST(ExactMerge, UnmergingAllocatesNothing) {
  using Number = typename TypeParam::Scalar;
  const auto a = random_matrix<Number>(4, 90, 2);
  const auto b = random_matrix<Number>(70, 4, 3);
  for (const double scale : {1.0, 1e6}) {
    Target<TypeParam> target(random_matrix<Number>(70, 90, 1));
    const auto record =
        MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), static_cast<Number>(scale)});
    EXPECT_EQ(testing::allocations_of([&] { record.unmerge(target.weight); }), 0);
  }
}

// Lines longer than a piece.
TYPED_TEST(ExactMerge, ReadsAndRestoresLongLines) {
  using Number = typename TypeParam::Scalar;
  const auto w = random_matrix<Number>(5, 9001, 1);
  const auto a = random_matrix<Number>(2, 9001, 2);
  const auto b = random_matrix<Number>(5, 2, 3);
  for (const double scale : {1e-2, 1e6}) {
    SCOPED_TRACE(scale);
    Target<TypeParam> target(w);
    const auto record =
        MergeUndo<Number>::merge("test", target.weight, {view_of(a), view_of(b), static_cast<Number>(scale)});
    Matrix<Number> unmerged(w.rows(), w.cols());
    record.read_unmerged(target.weight, view_of(unmerged));
    EXPECT_TRUE(same_bits(unmerged, w));
    record.unmerge(target.weight);
    EXPECT_TRUE(same_bits(target.values(), w));
  }
}

TEST(MergeUndo, BothKindsOfWeightMergeToTheSameBits) {
  const auto w = random_matrix<float>(53, 77, 1);
  const auto a = random_matrix<float>(5, 77, 2);
  const auto b = random_matrix<float>(53, 5, 3);
  Matrix<float> rows = w;
  Eigen::MatrixXf columns = w;
  PackedWeight<float> packed{view_of(w)};
  DenseWeight<float> by_row{view_of(rows)};
  DenseWeight<float> by_column{view_of(columns)};
  const LowRankUpdate<float> update{view_of(a), view_of(b), 0.5F};
  (void)MergeUndo<float>::merge("test", packed, update);
  (void)MergeUndo<float>::merge("test", by_row, update);
  (void)MergeUndo<float>::merge("test", by_column, update);
  Matrix<float> from_packed(53, 77);
  read_back(packed, view_of(from_packed));
  EXPECT_TRUE(same_bits(from_packed, rows));
  EXPECT_TRUE(same_bits(columns, rows));
}

}  // namespace
}  // namespace lora
