// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <utility>
#include <vector>

#include "intrinsic_dimension/projection.hpp"
#include "intrinsic_dimension/subspace.hpp"
#include "lora/core/random.hpp"

namespace intrinsic_projection_test {
namespace {

using examples::intrinsic_dimension::SubspaceProjection;
using lora::Index;

constexpr double epsilon = std::numeric_limits<float>::epsilon();
constexpr Index group = SubspaceProjection::lanes * SubspaceProjection::smallest_block;

std::vector<float> normal(Index size, std::uint64_t stream) {
  std::vector<float> values(static_cast<std::size_t>(size));
  lora::fill_normal(lora::MatrixView<float>{values.data(), 1, size, size, 1}, 1.0, {7, stream});
  return values;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

double norm(const std::vector<float>& a) { return std::sqrt(dot(a, a)); }

std::vector<float> expand(SubspaceProjection& p, const std::vector<float>& coordinates) {
  std::vector<float> theta(static_cast<std::size_t>(p.parameters()));
  p.apply(coordinates, theta);
  return theta;
}

std::vector<float> project(SubspaceProjection& p, const std::vector<float>& theta) {
  std::vector<float> coordinates(static_cast<std::size_t>(p.subspace()));
  p.apply_transposed(theta, coordinates);
  return coordinates;
}

// Relative rounding error of a product in the Euclidean norm: each of the 3 log2(n) stages of butterflies is orthogonal
// up to a factor and rounds once, the sums over blocks round once per group and lane, the scaling once, here and there.
double rounding(const SubspaceProjection& p) {
  const double stages = 3 * std::log2(static_cast<double>(p.block()));
  const double sums = std::ceil(static_cast<double>(p.parameters()) / static_cast<double>(p.block())) + 1;
  return epsilon * (stages + sums + 2);
}

// D and d: a network's, a last group that is nearly empty or nearly full, less than a block, d above the smallest
// block.
class Projection : public ::testing::TestWithParam<std::pair<Index, Index>> {
 protected:
  SubspaceProjection p{GetParam().first, GetParam().second, 1};

  // Bounds of |P x|^2 / |x|^2: what whole groups contribute, without and with the last, partial one.
  [[nodiscard]] double least() const { return std::floor(groups()) / groups(); }
  [[nodiscard]] double most() const { return std::ceil(groups()) / groups(); }

 private:
  [[nodiscard]] double groups() const {
    return static_cast<double>(p.parameters()) / static_cast<double>(SubspaceProjection::lanes * p.block());
  }
};

INSTANTIATE_TEST_SUITE_P(Shapes, Projection,
                         ::testing::Values(std::pair<Index, Index>{535818, 300},
                                           std::pair<Index, Index>{2 * group, 1024},
                                           std::pair<Index, Index>{2 * group + 1, 64},
                                           std::pair<Index, Index>{2 * group - 1, 1}, std::pair<Index, Index>{100, 100},
                                           std::pair<Index, Index>{1, 1}, std::pair<Index, Index>{40000, 1025}));

TEST_P(Projection, TransposeIsTheAdjoint) {
  for (std::uint64_t stream = 0; stream < 2; ++stream) {
    const auto x = normal(p.subspace(), stream);
    const auto y = normal(p.parameters(), 10 + stream);
    const auto px = expand(p, x);
    const auto pty = project(p, y);
    // |P|^2 is at most the upper bound of the lengths below, and both sides round.
    EXPECT_NEAR(dot(px, y), dot(x, pty), 2 * rounding(p) * std::sqrt(most()) * norm(x) * norm(y));
  }
}

TEST_P(Projection, LengthsStayWithinTheBoundOfTheLastGroup) {
  for (std::uint64_t stream = 0; stream < 2; ++stream) {
    const auto x = normal(p.subspace(), stream);
    const double ratio = dot(expand(p, x), expand(p, x)) / dot(x, x);
    EXPECT_GE(ratio, least() * (1 - 2 * rounding(p)));
    EXPECT_LE(ratio, most() * (1 + 2 * rounding(p)));
  }
}

TEST(ProjectionColumns, AreOrthonormalWhenBlocksDivideTheParameters) {
  SubspaceProjection p(3 * group, 700, 5);
  const auto x = normal(p.subspace(), 0);
  auto difference = project(p, expand(p, x));
  for (std::size_t i = 0; i < x.size(); ++i) difference[i] -= x[i];
  EXPECT_LE(norm(difference), 2 * rounding(p) * norm(x));
}

// In the middle of a block nothing but chance keeps columns apart: E[P^T P] = I over the seeds.
TEST(ProjectionColumns, AreOrthonormalInExpectationForAnyNumberOfParameters) {
  constexpr int seeds = 400;
  double length = 0;
  double length_squares = 0;
  double product = 0;
  double product_squares = 0;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    SubspaceProjection p(1000, 2, seed);
    const auto first = expand(p, {1, 0});
    const auto second = expand(p, {0, 1});
    length += dot(first, first) / seeds;
    length_squares += std::pow(dot(first, first), 2) / seeds;
    product += dot(first, second) / seeds;
    product_squares += std::pow(dot(first, second), 2) / seeds;
  }
  // The seeds are fixed, so this holds always or never; five standard errors is what a wrong scale or sign exceeds.
  EXPECT_LE(std::abs(length - 1), 5 * std::sqrt((length_squares - length * length) / seeds));
  EXPECT_LE(std::abs(product), 5 * std::sqrt((product_squares - product * product) / seeds));
  EXPECT_LT(product_squares, 0.01);  // 1 / D, the inner product of random unit vectors, with a margin of 10
}

TEST(ProjectionColumns, SmallerSubspacesAreTheFirstColumnsOfLargerOnes) {
  SubspaceProjection small(5000, 3, 9);
  SubspaceProjection large(5000, 900, 9);
  std::vector<float> x(900, 0.0F);
  std::copy_n(std::vector<float>{1, -2, 0.5F}.begin(), 3, x.begin());
  EXPECT_EQ(expand(small, {1, -2, 0.5F}), expand(large, x));
}

TEST(ProjectionColumns, DifferFromBlockToBlock) {
  SubspaceProjection p(2 * group, 3, 9);
  const auto theta = expand(p, {1, -2, 0.5F});
  const auto half = theta.begin() + group;
  EXPECT_FALSE(std::equal(theta.begin(), half, half));
  std::vector<float> lane[2];
  for (Index i = 0; i < group; i += SubspaceProjection::lanes) {
    for (Index l = 0; l < 2; ++l) lane[l].push_back(theta[static_cast<std::size_t>(i + l)]);
  }
  EXPECT_NE(lane[0], lane[1]);
}

TEST(ProjectionSeed, DecidesEveryBit) {
  const std::vector<float> x = {1, 2, 3};
  SubspaceProjection a(5000, 3, 1);
  SubspaceProjection same(5000, 3, 1);
  SubspaceProjection other(5000, 3, 2);
  EXPECT_EQ(expand(a, x), expand(same, x));
  EXPECT_NE(expand(a, x), expand(other, x));
}

TEST(ProjectionArguments, AreChecked) {
  EXPECT_THROW(SubspaceProjection(10, 0, 1), lora::ConfigError);
  EXPECT_THROW(SubspaceProjection(10, 11, 1), lora::ConfigError);
  SubspaceProjection p(10, 3, 1);
  std::vector<float> three(3);
  std::vector<float> nine(9);
  EXPECT_THROW(p.apply(three, nine), lora::ShapeError);
  EXPECT_THROW(p.apply_transposed(three, nine), lora::ShapeError);
}

// theta = theta_0 + P theta_d after every step, and theta_d moves against P^T times the gradient: the first step of
// Adam changes each coordinate by the learning rate, in the direction opposite to its gradient.
TEST(SubspaceTraining, KeepsTheNetworkInItsSubspaceAndDescends) {
  const auto base = examples::random_mlp<float>({6, 5, 3}, 3);
  examples::intrinsic_dimension::SubspaceTraining training(base, 7, 11);
  examples::Batch batch{lora::Matrix<float>(4, 6), {0, 1, 2, 1}};
  lora::fill_normal(lora::view_of(batch.x), 1.0, {7, 1});

  auto reference = base;
  examples::Pass<examples::DenseLayer<float>> pass;
  const double loss = examples::loss_and_gradients(reference, batch, pass);
  std::vector<float> gradient;
  for (const auto& parameter : reference.parameters()) {
    gradient.insert(gradient.end(), parameter.gradient().data(), parameter.gradient().data() + parameter.size());
  }
  SubspaceProjection p(static_cast<Index>(gradient.size()), 7, 11);
  const auto slope = project(p, gradient);

  EXPECT_EQ(training.step(batch, 1e-3), loss);
  std::vector<float> coordinates(training.coordinates().data(), training.coordinates().data() + 7);
  for (std::size_t i = 0; i < slope.size(); ++i) EXPECT_LT(coordinates[i] * slope[i], 0.0F) << i;
  const auto moved = expand(p, coordinates);
  std::size_t i = 0;
  auto trained = training.network();
  auto before = base;
  const auto origin = before.parameters();
  for (std::size_t k = 0; k < origin.size(); ++k) {
    const auto now = trained.parameters()[k].value();
    for (Index e = 0; e < now.size(); ++e, ++i) ASSERT_EQ(now.data()[e], origin[k].value().data()[e] + moved[i]);
  }
  EXPECT_EQ(i, moved.size());
}

}  // namespace
}  // namespace intrinsic_projection_test
