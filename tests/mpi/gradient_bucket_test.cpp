// SPDX-License-Identifier: MIT
// A bucket's means are those of a loop over the ranks in their order, bit for bit, whatever its size.
#include "lora/mpi/gradient_bucket.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <span>
#include <vector>

#include "mpi/ranks.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing::gradient_bucket_test {
namespace {

template <class Scalar>
class GradientBucket : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GradientBucket, Scalars);

/// f_0 g_0 + f_1 g_1 + ..., products and sums each rounded in double, in this order. Ranks of factor 0 are left out.
template <class Scalar>
Matrix<Scalar> mean_by_definition(const Matrix<Scalar>& mine, const std::vector<double>& factors) {
  const auto all = gather(mine);
  Matrix<Scalar> result(mine.rows(), mine.cols());
  for (Index i = 0; i < mine.size(); ++i) {
    double sum = -0.0;
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      const volatile double product = factors[rank] * static_cast<double>(all[rank].data()[i]);
      if (factors[rank] != 0) sum += product;
    }
    result.data()[i] = static_cast<Scalar>(sum);
  }
  return result;
}

/// 1/p for each rank, shifted a little from rank to rank.
std::vector<double> uneven_factors() {
  std::vector<double> factors;
  for (int rank = 0; rank < world().size(); ++rank) factors.push_back((1.0 + 0.1 * rank) / world().size());
  return factors;
}

template <class Scalar>
Matrix<Scalar> gradient_of_rank(Index size, std::uint64_t seed) {
  return random_matrix<Scalar>(1, size, seed * 1000 + static_cast<std::uint64_t>(world().rank()));
}

template <class Scalar>
void average(mpi::GradientBucket<Scalar>& bucket, std::span<Matrix<Scalar>> gradients,
             std::span<const double> factors) {
  std::vector<std::span<Scalar>> spans;
  for (auto& gradient : gradients) spans.emplace_back(gradient.data(), static_cast<std::size_t>(gradient.size()));
  bucket.send(world(), spans);
  bucket.progress();
  bucket.average(world(), factors);
  bucket.progress();
  bucket.unpack(world());
}

TYPED_TEST(GradientBucket, MeansAreThoseOfTheDefinition) {
  mpi::GradientBucket<TypeParam> bucket;  // one, of changing size
  const auto factors = uneven_factors();
  for (const Index size : {1, 5000, 0, 2, 3, 1023, 1024, 1025, 4096, 7}) {
    auto gradient = gradient_of_rank<TypeParam>(size, 1);
    const auto expected = mean_by_definition(gradient, factors);
    average<TypeParam>(bucket, {&gradient, 1}, factors);
    EXPECT_TRUE(same_bits(gradient, expected)) << size;
    EXPECT_TRUE(same_on_all_ranks(gradient)) << size;
  }
}

TYPED_TEST(GradientBucket, SeveralTensorsAreAveragedAsEachAlone) {
  mpi::GradientBucket<TypeParam> bucket;
  const auto factors = uneven_factors();
  std::vector<Matrix<TypeParam>> gradients = {gradient_of_rank<TypeParam>(100, 1), gradient_of_rank<TypeParam>(1, 2),
                                              gradient_of_rank<TypeParam>(77, 3)};
  std::vector<Matrix<TypeParam>> expected;
  for (const auto& gradient : gradients) expected.push_back(mean_by_definition(gradient, factors));
  average<TypeParam>(bucket, gradients, factors);
  for (std::size_t i = 0; i < gradients.size(); ++i) EXPECT_TRUE(same_bits(gradients[i], expected[i])) << i;
}

TYPED_TEST(GradientBucket, ARankOfFactorZeroAddsNothingWhateverItHolds) {
  mpi::GradientBucket<TypeParam> bucket;
  std::vector<double> factors(static_cast<std::size_t>(world().size()), 0.0);
  factors.back() = 1.0;
  auto gradient = gradient_of_rank<TypeParam>(10, 1);
  gradient(0, 3) = TypeParam(-0.0);
  const auto expected = gather(gradient).back();
  if (world().rank() != world().size() - 1) gradient.setConstant(std::numeric_limits<TypeParam>::quiet_NaN());
  average<TypeParam>(bucket, {&gradient, 1}, factors);
  EXPECT_TRUE(same_bits(gradient, expected));
}

TYPED_TEST(GradientBucket, LargeGradientsDoNotOverflowOnTheWay) {
  mpi::GradientBucket<TypeParam> bucket;
  const std::vector<double> factors(static_cast<std::size_t>(world().size()), 1.0 / world().size());
  const TypeParam largest = std::numeric_limits<float>::max();
  Matrix<TypeParam> gradient = Matrix<TypeParam>::Constant(1, 4, largest);
  average<TypeParam>(bucket, {&gradient, 1}, factors);
  for (Index i = 0; i < 4; ++i) EXPECT_NEAR(gradient(0, i) / largest, 1, 1e-15);
}

}  // namespace
}  // namespace lora::testing::gradient_bucket_test
