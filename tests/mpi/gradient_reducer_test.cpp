// SPDX-License-Identifier: MIT
// The ranks' gradients become those of the whole batch: exactly where arithmetic is exact, within a derived bound where
// it rounds, and the same bits on every rank and in every run.
#include "lora/mpi/gradient_reducer.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "lora/layers/linear.hpp"
#include "lora/mpi/shard.hpp"
#include "mpi/ranks.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing::gradient_reducer_test {
namespace {

using mpi::Shard;

template <class Scalar>
class GradientReducer : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GradientReducer, Scalars);

/// A layer of 13 inputs, 9 outputs and rank 4, and a batch with the loss's gradient at each sample's output.
template <class Scalar>
struct Case {
  static constexpr Index in_features = 13;
  static constexpr Index out_features = 9;

  LoraLinear<Scalar> layer{random_matrix<Scalar>(out_features, in_features, 1),
                           {.rank = 4, .alpha = 8, .init_lora_weights = InitLoraWeights::random},
                           2};
  Matrix<Scalar> x = random_matrix<Scalar>(32, in_features, 3);
  Matrix<Scalar> dy = random_matrix<Scalar>(32, out_features, 4);

  std::span<const Parameter<Scalar>> parameters() { return layer.parameters(); }
  /// The gradient of the mean loss over these samples; zero for none.
  void differentiate(const Shard& part) {
    layer.zero_grad();
    if (part.count == 0) return;
    layer.forward(x.middleRows(part.begin, part.count));
    layer.accumulate_gradients((dy.middleRows(part.begin, part.count) / static_cast<Scalar>(part.count)).eval());
  }
  /// The sums S of gradient_tolerance for A.
  [[nodiscard]] Matrix<double> magnitudes_of_A() const {
    const Matrix<double> V = absolute(dy) * absolute(layer.lora_B());
    return layer.scaling() / 32.0 * V.transpose() * absolute(x);
  }
  /// And for B.
  [[nodiscard]] Matrix<double> magnitudes_of_B() const {
    const Matrix<double> U = absolute(x) * absolute(layer.lora_A()).transpose();
    return layer.scaling() / 32.0 * absolute(dy).transpose() * U;
  }
  static Matrix<double> absolute(const Matrix<Scalar>& m) { return m.template cast<double>().cwiseAbs(); }
};

template <class Scalar>
::testing::AssertionResult within(const Matrix<Scalar>& got, const Matrix<Scalar>& expected,
                                  const Matrix<double>& bound) {
  const Matrix<double> difference = (got.template cast<double>() - expected.template cast<double>()).cwiseAbs();
  if ((difference.array() <= bound.array()).all()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "differences\n" << difference << "\nbounds\n" << bound;
}

/// Parts of a batch of 32 in order: equal ones, one that has it all, and one that grows with the rank.
Shard equal_part() { return mpi::shard(32, world().rank(), world().size()); }
Shard all_on_last_rank() { return world().rank() == world().size() - 1 ? Shard{0, 32} : Shard{0, 0}; }
Shard unequal_part() {
  const int rank = world().rank();
  const bool last = rank == world().size() - 1;
  const Index begin = rank * (rank + 1) / 2;
  return {begin, last ? 32 - begin : rank + 1};
}

TYPED_TEST(GradientReducer, GradientsAreThoseOfTheWholeBatch) {
  for (const Shard& part : {equal_part(), unequal_part(), all_on_last_rank()}) {
    Case<TypeParam> one;
    one.differentiate({0, 32});
    Case<TypeParam> many;
    mpi::GradientReducer<TypeParam> reducer(world(), many.parameters());
    many.differentiate(part);
    reducer.reduce(many.parameters(), static_cast<double>(part.count));

    const auto tolerance_of_A = mpi::gradient_tolerance<TypeParam>(32, many.out_features, world().size());
    const auto tolerance_of_B = mpi::gradient_tolerance<TypeParam>(32, many.in_features, world().size());
    auto& got = many.layer.gradients();
    const auto& expected = one.layer.gradients();
    EXPECT_TRUE(within(got.A, expected.A, tolerance_of_A * many.magnitudes_of_A()));
    EXPECT_TRUE(within(got.B, expected.B, tolerance_of_B * many.magnitudes_of_B()));
    EXPECT_TRUE(same_on_all_ranks(got.A));
    EXPECT_TRUE(same_on_all_ranks(got.B));
  }
}

/// Rank 0 has half of the batch, rank 1 a quarter, ..., and the last two the same.
Shard power_of_two_part() {
  Index count = 32;
  Index begin = 0;
  for (int rank = 0; rank < world().rank(); ++rank) {
    if (rank < world().size() - 1) count /= 2;
    begin += count;
  }
  if (world().rank() < world().size() - 1) count /= 2;
  return {begin, count};
}

TYPED_TEST(GradientReducer, WhereArithmeticIsExactTheyAreTheSameBits) {
  // Multiples of 1/4 up to 1 in magnitude, a scale of 2 and counts that are powers of 2: no operation rounds.
  const auto coarse = [](const Matrix<TypeParam>& m) -> Matrix<TypeParam> {
    return (m * TypeParam(4)).array().round() / 4;
  };
  const auto make_case = [&](Case<TypeParam>& problem) {
    problem.x = coarse(problem.x);
    problem.dy = coarse(problem.dy);
    problem.layer.set_factors(coarse(problem.layer.lora_A()), coarse(problem.layer.lora_B()));
  };
  Case<TypeParam> one;
  make_case(one);
  one.differentiate({0, 32});
  ASSERT_GT(one.layer.gradients().A.norm(), 0);
  ASSERT_GT(one.layer.gradients().B.norm(), 0);
  Case<TypeParam> many;
  make_case(many);
  mpi::GradientReducer<TypeParam> reducer(world(), many.parameters());
  const Shard part = power_of_two_part();
  many.differentiate(part);
  reducer.reduce(many.parameters(), static_cast<double>(part.count));
  EXPECT_TRUE(many.layer.gradients().A == one.layer.gradients().A);
  EXPECT_TRUE(many.layer.gradients().B == one.layer.gradients().B);
}

/// The gradient of A after one reduction, begun in parts as `start` says.
template <class Scalar, class Start>
Matrix<Scalar> reduced(Start start) {
  Case<Scalar> problem;
  mpi::GradientReducer<Scalar> reducer(world(), problem.parameters());
  const Shard part = unequal_part();
  problem.differentiate(part);
  start(reducer, problem.parameters());
  reducer.reduce(problem.parameters(), static_cast<double>(part.count));
  return problem.layer.gradients().A;
}

TYPED_TEST(GradientReducer, BitsDependNeitherOnTheRunNorOnOverlap) {
  using Reducer = mpi::GradientReducer<TypeParam>;
  using List = std::span<const Parameter<TypeParam>>;
  const auto at_once = reduced<TypeParam>([](Reducer&, List) {});
  for (int run = 0; run < 5; ++run) {
    EXPECT_TRUE(same_bits(reduced<TypeParam>([](Reducer&, List) {}), at_once));
  }
  EXPECT_TRUE(same_bits(reduced<TypeParam>([](Reducer& reducer, List all) { reducer.start(all); }), at_once));
  EXPECT_TRUE(same_bits(reduced<TypeParam>([](Reducer& reducer, List all) { reducer.start(all.last(1)); }), at_once));
  EXPECT_TRUE(same_bits(reduced<TypeParam>([](Reducer& reducer, List all) {
                          reducer.start(all.last(1));
                          reducer.progress();
                          reducer.start(all.first(1));
                          reducer.progress();
                        }),
                        at_once));
}

TYPED_TEST(GradientReducer, ServesManySteps) {
  Case<TypeParam> problem;
  mpi::GradientReducer<TypeParam> reducer(world(), problem.parameters());
  EXPECT_EQ(reducer.size(), 4 * (13 + 9));
  for (int step = 0; step < 4; ++step) {
    problem.layer.gradients().A.setConstant(static_cast<TypeParam>(step + world().rank()));
    if (step % 2 == 0) reducer.start(problem.parameters().first(1));
    reducer.reduce(problem.parameters(), 2);
    const double mean = step + (world().size() - 1) / 2.0;
    EXPECT_TRUE(problem.layer.gradients().A.isConstant(static_cast<TypeParam>(mean)));
  }
}

// Sizes repeat, and every fifth is empty. The order of the starts has nothing to do with that of the list.
TYPED_TEST(GradientReducer, ParametersAreStartedOneByOneInAnyOrder) {
  constexpr std::size_t count = 37;
  std::vector<Trainable<TypeParam>> tensors(count);
  std::vector<Parameter<TypeParam>> list;
  for (std::size_t i = 0; i < count; ++i) {
    tensors[i].value.resize(static_cast<Index>(i % 5), 3);
    tensors[i].gradient.resize(static_cast<Index>(i % 5), 3);
    list.push_back(tensors[i].parameter(std::to_string(i), ParameterRole::lora_A));
  }
  mpi::GradientReducer<TypeParam> reducer(world(), list);
  for (int step = 0; step < 3; ++step) {
    for (std::size_t i = 0; i < count; ++i) {
      tensors[i].gradient.setConstant(static_cast<TypeParam>(10 * i + static_cast<std::size_t>(step + world().rank())));
    }
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t next = 11 * i % count;
      reducer.start({&list[next], 1});
      if (tensors[next].gradient.size() == 0) continue;
      EXPECT_THROW(reducer.start({&list[next], 1}), StateError);
    }
    reducer.reduce(list, 1);
    for (std::size_t i = 0; i < count; ++i) {
      const double mean = static_cast<double>(10 * i) + step + (world().size() - 1) / 2.0;
      EXPECT_TRUE(tensors[i].gradient.isConstant(static_cast<TypeParam>(mean))) << i;
    }
  }
}

TYPED_TEST(GradientReducer, OneRankKeepsItsBits) {
  Case<TypeParam> problem;
  problem.differentiate({0, 7});
  problem.layer.gradients().A(0, 0) = TypeParam(-0.0);
  const Matrix<TypeParam> before = problem.layer.gradients().A;
  const mpi::Communicator self(MPI_COMM_SELF);
  mpi::GradientReducer<TypeParam> reducer(self, problem.parameters());
  reducer.reduce(problem.parameters(), 7);
  EXPECT_TRUE(same_bits(problem.layer.gradients().A, before));
}

TYPED_TEST(GradientReducer, WeightsNeedNotBeCounts) {
  Case<TypeParam> problem;
  mpi::GradientReducer<TypeParam> reducer(world(), problem.parameters());
  problem.layer.gradients().A.setConstant(TypeParam(world().rank() == 0 ? 4 : 1));
  problem.layer.gradients().B.setZero();
  reducer.reduce(problem.parameters(), world().rank() == 0 ? 0.25 : 0);
  EXPECT_TRUE((problem.layer.gradients().A.array() == 4).all());
}

TYPED_TEST(GradientReducer, NotANumberReachesEveryRankAndNoOtherElement) {
  constexpr TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  constexpr TypeParam infinity = std::numeric_limits<TypeParam>::infinity();
  Case<TypeParam> problem;
  mpi::GradientReducer<TypeParam> reducer(world(), problem.parameters());
  problem.differentiate(equal_part());
  auto& gradient = problem.layer.gradients().A;
  if (world().rank() == world().size() - 1) gradient(2, 5) = nan;
  if (world().rank() == 0) gradient(1, 1) = infinity;
  reducer.reduce(problem.parameters(), 1);
  for (Index i = 0; i < gradient.rows(); ++i) {
    for (Index j = 0; j < gradient.cols(); ++j) {
      EXPECT_EQ(std::isnan(gradient(i, j)), i == 2 && j == 5);
      EXPECT_EQ(std::isinf(gradient(i, j)), i == 1 && j == 1);
    }
  }
}

TYPED_TEST(GradientReducer, NothingToReduceIsNoError) {
  mpi::GradientReducer<TypeParam> nothing(world(), {});
  nothing.start({});
  nothing.reduce({}, 1);
  EXPECT_EQ(nothing.size(), 0);

  Trainable<TypeParam> empty;
  empty.value.resize(0, 5);
  const std::vector<Parameter<TypeParam>> list = {empty.parameter("empty", ParameterRole::lora_A)};
  mpi::GradientReducer<TypeParam> reducer(world(), list);
  reducer.start(list);
  reducer.reduce(list, 1);
  EXPECT_EQ(reducer.size(), 0);
}

TYPED_TEST(GradientReducer, ParametersThatCameLaterAreRefused) {
  Case<TypeParam> problem;
  Case<TypeParam> other;
  mpi::GradientReducer<TypeParam> reducer(world(), problem.parameters());
  std::vector<Parameter<TypeParam>> grown(problem.parameters().begin(), problem.parameters().end());
  grown.push_back(other.parameters()[0]);
  EXPECT_THROW(reducer.reduce(grown, 1), StateError);
  EXPECT_THROW(reducer.reduce(problem.parameters().first(1), 1), StateError);
  EXPECT_THROW(reducer.reduce(other.parameters(), 1), StateError);
  EXPECT_THROW(reducer.start(other.parameters()), StateError);
  EXPECT_NO_THROW(reducer.reduce(problem.parameters(), 1));
}

TYPED_TEST(GradientReducer, AGradientUnderWayIsNotStartedAgain) {
  Case<TypeParam> problem;
  mpi::GradientReducer<TypeParam> reducer(world(), problem.parameters());
  reducer.start(problem.parameters().first(1));
  EXPECT_THROW(reducer.start(problem.parameters()), StateError);
  EXPECT_NO_THROW(reducer.reduce(problem.parameters(), 1));
}

// Those before the refused one were taken for started, and each rank kept its own gradients.
TYPED_TEST(GradientReducer, AStartThatIsRefusedStartsNothing) {
  Case<TypeParam> problem;
  problem.differentiate(equal_part());
  mpi::GradientReducer<TypeParam> reducer(world(), problem.parameters());
  reducer.reduce(problem.parameters(), 1);
  const Matrix<TypeParam> mean = problem.layer.gradients().A;
  problem.differentiate(equal_part());
  reducer.start(problem.parameters().last(1));
  EXPECT_THROW(reducer.start(problem.parameters()), StateError);
  reducer.reduce(problem.parameters(), 1);
  EXPECT_TRUE(same_bits(problem.layer.gradients().A, mean));
}

TYPED_TEST(GradientReducer, AWeightThatIsNoneIsRefusedOnEveryRank) {
  Case<TypeParam> problem;
  mpi::GradientReducer<TypeParam> reducer(world(), problem.parameters());
  const bool last = world().rank() == world().size() - 1;
  for (const double wrong : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    problem.differentiate(equal_part());
    const Matrix<TypeParam> before = problem.layer.gradients().A;
    EXPECT_THROW(reducer.reduce(problem.parameters(), last ? wrong : 1.0), ConfigError) << wrong;
    EXPECT_TRUE(same_bits(problem.layer.gradients().A, before));
  }
  EXPECT_THROW(reducer.reduce(problem.parameters(), 0), ConfigError);
  EXPECT_NO_THROW(reducer.reduce(problem.parameters(), 1));
}

TEST(GradientTolerance, GrowsWithTheLengthOfTheSums) {
  const double unit = std::numeric_limits<float>::epsilon() / 2;
  EXPECT_NEAR(mpi::gradient_tolerance<float>(32, 100, 4), 2 * 140 * unit, 2 * 140 * unit * 141 * unit);
  EXPECT_GT(mpi::gradient_tolerance<float>(64, 100, 4), mpi::gradient_tolerance<float>(32, 100, 4));
  EXPECT_GT(mpi::gradient_tolerance<double>(32, 100, 8), mpi::gradient_tolerance<double>(32, 100, 4));
}

}  // namespace
}  // namespace lora::testing::gradient_reducer_test
