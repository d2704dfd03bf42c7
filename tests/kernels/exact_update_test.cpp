#include "lora/kernels/exact_update.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <vector>

#include "support/kernel_oracle.hpp"

namespace lora {
namespace {

using kernels::exceptional_code;
using testing::supported_isas;

template <class Scalar>
std::vector<Scalar> normal(Index count, double scale, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution;
  std::vector<Scalar> values(static_cast<std::size_t>(count));
  for (auto& value : values) value = static_cast<Scalar>(scale * distribution(generator));
  return values;
}

template <class Scalar>
bool same_bits(const std::vector<Scalar>& a, const std::vector<Scalar>& b) {
  if (a.empty() || b.empty()) return a.size() == b.size();
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Scalar)) == 0;
}

template <class Scalar>
struct Update {
  std::vector<Scalar> weights;
  std::vector<std::int8_t> codes;
  std::vector<Scalar> originals;
  kernels::ExactUpdate result;

  Update(std::vector<Scalar> start, const std::vector<Scalar>& delta, Isa isa)
      : weights(std::move(start)), codes(weights.size()), originals(weights.size()) {
    result = kernels::apply_exact(weights.data(), delta.data(), codes.data(), static_cast<Index>(weights.size()),
                                  originals.data(), isa);
    originals.resize(static_cast<std::size_t>(result.exceptions));
    originals.shrink_to_fit();
  }
};

template <class Scalar>
void expect_restored(const std::vector<Scalar>& start, const std::vector<Scalar>& delta) {
  for (const Isa isa : supported_isas()) {
    Update<Scalar> update(start, delta, isa);
    ASSERT_TRUE(update.result.applied);
    EXPECT_EQ(std::count(update.codes.begin(), update.codes.end(), exceptional_code), update.result.exceptions);
    for (std::size_t i = 0; i < start.size(); ++i) {
      if (std::isnan(start[i])) {
        ASSERT_TRUE(std::isnan(update.weights[i]));
      } else {
        ASSERT_EQ(update.weights[i], start[i] + delta[i]) << i;
      }
    }
    for (const Isa undo : supported_isas()) {
      std::vector<Scalar> weights = update.weights;
      const Index taken = kernels::restore_exact(weights.data(), delta.data(), update.codes.data(),
                                                 static_cast<Index>(weights.size()), update.originals.data(), undo);
      ASSERT_EQ(taken, update.result.exceptions);
      ASSERT_TRUE(same_bits(weights, start)) << isa_name(isa) << " undone by " << isa_name(undo);
    }
  }
}

template <class Scalar>
class ExactUpdateTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ExactUpdateTest, Scalars);

TYPED_TEST(ExactUpdateTest, RestoresEveryBitWhateverTheSizeOfTheUpdate) {
  for (const double scale : {0.0, 1e-30, 1e-2, 1.0, 1e2, 1e6}) {
    expect_restored(normal<TypeParam>(2000, 1, 1), normal<TypeParam>(2000, scale, 2));
  }
}

TYPED_TEST(ExactUpdateTest, RestoresEveryBitForEveryTail) {
  for (Index count = 0; count <= 70; ++count) {
    expect_restored(normal<TypeParam>(count, 1, 3), normal<TypeParam>(count, 3, 4));
  }
}

TYPED_TEST(ExactUpdateTest, RestoresZerosDenormalsAndWhatIsNotFinite) {
  using Limits = std::numeric_limits<TypeParam>;
  const std::vector<TypeParam> special = {TypeParam(0),          -TypeParam(0),       Limits::denorm_min(),
                                          -Limits::denorm_min(), Limits::min(),       -Limits::min(),
                                          Limits::infinity(),    -Limits::infinity(), Limits::quiet_NaN(),
                                          TypeParam(1),          Limits::max() / 4,   -Limits::max() / 4};
  std::vector<TypeParam> start;
  std::vector<TypeParam> delta;
  for (const TypeParam w : special) {
    for (const TypeParam d : special) {
      if (!std::isfinite(d)) continue;
      start.push_back(w);
      delta.push_back(d);
    }
  }
  expect_restored(start, delta);
}

TYPED_TEST(ExactUpdateTest, SmallUpdatesNeedFewExceptions) {
  const Index count = 100000;
  for (const Isa isa : supported_isas()) {
    const Update<TypeParam> update(normal<TypeParam>(count, 1, 5), normal<TypeParam>(count, 0.1, 6), isa);
    // Outside a byte lie weights below |delta| / 128, which takes |w| of a few thousandths: one in a thousand at most.
    EXPECT_LT(update.result.exceptions, count / 1000);
  }
}

TYPED_TEST(ExactUpdateTest, WeightsKeepEveryBitWhenADeltaOrASumIsNotFinite) {
  using Limits = std::numeric_limits<TypeParam>;
  for (const Isa isa : supported_isas()) {
    for (const std::size_t at : {std::size_t{0}, std::size_t{17}, std::size_t{37}, std::size_t{49}}) {
      for (const TypeParam bad : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), Limits::max()}) {
        auto start = normal<TypeParam>(50, 1, 7);
        auto delta = normal<TypeParam>(50, 1, 8);
        delta[at] = bad;
        start[at] = Limits::max();
        start[3] = TypeParam(1e-30);  // an exception on the way
        const Update<TypeParam> update(start, delta, isa);
        EXPECT_FALSE(update.result.applied);
        EXPECT_EQ(update.result.exceptions, 0);
        EXPECT_TRUE(same_bits(update.weights, start));
      }
    }
  }
}

TYPED_TEST(ExactUpdateTest, AWeightThatIsNotFiniteDoesNotStopAnUpdate) {
  for (const Isa isa : supported_isas()) {
    auto start = normal<TypeParam>(50, 1, 9);
    start[20] = std::numeric_limits<TypeParam>::quiet_NaN();
    start[49] = std::numeric_limits<TypeParam>::infinity();
    EXPECT_TRUE(Update<TypeParam>(start, normal<TypeParam>(50, 1, 10), isa).result.applied);
  }
}

// (w + delta) * f for one factor each, or one for all.
template <class Scalar>
void expect_scaled_restored(const std::vector<Scalar>& start, const std::vector<Scalar>& delta,
                            const std::vector<Scalar>& factors, Index step) {
  std::vector<Scalar> reciprocals;
  for (const Scalar factor : factors) reciprocals.push_back(Scalar(1) / factor);
  const kernels::RunFactors<Scalar> run{factors.data(), reciprocals.data(), step};
  const auto count = static_cast<Index>(start.size());
  std::vector<Scalar> weights = start;
  std::vector<std::int8_t> codes(start.size());
  std::vector<Scalar> originals(start.size());
  const auto update = kernels::apply_scaled(weights.data(), delta.data(), run, codes.data(), count, originals.data());
  ASSERT_TRUE(update.applied);
  originals.resize(static_cast<std::size_t>(update.exceptions));
  originals.shrink_to_fit();
  for (std::size_t i = 0; i < start.size(); ++i) {
    const Scalar sum = start[i] + delta[i];
    const Scalar expected = sum * factors[i * static_cast<std::size_t>(step)];
    ASSERT_TRUE(weights[i] == expected || (std::isnan(weights[i]) && std::isnan(expected))) << i;
  }
  EXPECT_EQ(kernels::restore_scaled(weights.data(), delta.data(), run, codes.data(), count, originals.data()),
            update.exceptions);
  ASSERT_TRUE(same_bits(weights, start));
}

TYPED_TEST(ExactUpdateTest, ScalingRestoresEveryBitWhateverTheFactors) {
  using Limits = std::numeric_limits<TypeParam>;
  for (const double size : {0.0, 1e-30, 1e-2, 1.0, 1e3}) {
    const auto delta = normal<TypeParam>(500, size, 2);
    expect_scaled_restored(normal<TypeParam>(500, 1, 1), delta, normal<TypeParam>(500, 1, 3), 1);
    for (const TypeParam factor : {TypeParam(1), TypeParam(-0.7), TypeParam(0), Limits::denorm_min(), Limits::min(),
                                   Limits::max() / 100000, Limits::epsilon()}) {
      expect_scaled_restored(normal<TypeParam>(500, 1, 4), delta, {factor}, 0);
    }
  }
}

TYPED_TEST(ExactUpdateTest, ScalingNeedsFewExceptions) {
  const Index count = 100000;
  auto weights = normal<TypeParam>(count, 1, 5);
  const auto delta = normal<TypeParam>(count, 0.1, 6);
  const auto factors = normal<TypeParam>(count, 0.1, 7);
  std::vector<TypeParam> near_one;
  std::vector<TypeParam> reciprocals;
  for (const TypeParam factor : factors) {
    near_one.push_back(TypeParam(1) + factor);
    reciprocals.push_back(TypeParam(1) / near_one.back());
  }
  std::vector<std::int8_t> codes(weights.size());
  std::vector<TypeParam> originals(weights.size());
  const auto update = kernels::apply_scaled(weights.data(), delta.data(), {near_one.data(), reciprocals.data(), 1},
                                            codes.data(), count, originals.data());
  ASSERT_TRUE(update.applied);
  // Three roundings of |w + delta| instead of one: |w| below |delta| / 40 lies outside a byte.
  EXPECT_LT(update.exceptions, 4 * count / 1000);
}

TYPED_TEST(ExactUpdateTest, AScaledUpdateThatIsNotFiniteIsReportedAndTakenBack) {
  using Limits = std::numeric_limits<TypeParam>;
  struct Case {
    TypeParam delta, factor;
  };
  for (const Case bad : {Case{Limits::infinity(), 1}, Case{Limits::quiet_NaN(), 1}, Case{Limits::max(), 1},
                         Case{Limits::max() / 4, 5}, Case{Limits::max(), 0}}) {
    auto start = normal<TypeParam>(50, 1, 7);
    auto delta = normal<TypeParam>(50, 1, 8);
    start[49] = Limits::max();
    delta[49] = bad.delta;
    const TypeParam reciprocal = TypeParam(1) / bad.factor;
    auto weights = start;
    std::vector<std::int8_t> codes(50);
    std::vector<TypeParam> originals(50);
    const kernels::RunFactors<TypeParam> run{&bad.factor, &reciprocal, 0};
    const auto update = kernels::apply_scaled(weights.data(), delta.data(), run, codes.data(), 50, originals.data());
    EXPECT_FALSE(update.applied);
    EXPECT_EQ(kernels::restore_scaled(weights.data(), delta.data(), run, codes.data(), 50, originals.data()),
              update.exceptions);
    EXPECT_TRUE(same_bits(weights, start));
  }
}

}  // namespace
}  // namespace lora
