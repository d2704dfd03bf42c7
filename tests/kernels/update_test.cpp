// SPDX-License-Identifier: MIT
// Updates of weights that can be taken back bit for bit: the low-rank update itself, fused with adding it, and scaled.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lora/core/floating_point.hpp"
#include "lora/core/rounding.hpp"
#include "lora/kernels/delta.hpp"
#include "lora/kernels/fused_update.hpp"
#include "lora/kernels/half_update.hpp"
#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using kernels::UpdateStep;
using testing::ExactArray;
using testing::Oracle;
using testing::random_matrix;
using testing::same_bits;
using testing::Storage;
using testing::supported_isas;

using Scalars = ::testing::Types<float, double>;

template <class Scalar>
class DeltaTest : public ::testing::Test {};
TYPED_TEST_SUITE(DeltaTest, Scalars);

template <class Scalar>
Matrix<Scalar> delta(Isa isa, const ExactArray<Scalar>& coefficients, const MatrixView<const Scalar>& factor) {
  Matrix<Scalar> out(coefficients.view().rows, factor.cols);
  kernels::delta_kernel<Scalar>(isa)(coefficients.view().data, out.rows(), factor.data, factor.row_stride, factor.rows,
                                     out.cols(), out.data());
  return out;
}

TYPED_TEST(DeltaTest, MatchesTheOracleForEveryTail) {
  for (const Isa isa : supported_isas()) {
    for (const Index lines : {0, 1, 3, 4, 7, 8, 9, 17}) {
      for (const Index length : {1, 2, 5, 15, 16, 17, 24, 47, 48, 49, 100}) {
        for (const Index rank : {0, 1, 2, 16, 33}) {
          const ExactArray<TypeParam> coefficients(lines, rank, Storage::row_major, 1);
          const ExactArray<TypeParam> factor(rank, length, Storage::row_major, 2);
          const Matrix<TypeParam> got = delta(isa, coefficients, factor.input());
          Oracle oracle(lines, length);
          oracle.add_product(1, coefficients.input(), factor.input());
          oracle.expect_near(view_of(got), std::string(isa_name(isa)) + " " + std::to_string(lines) + " lines of " +
                                               std::to_string(length) + ", rank " + std::to_string(rank));
        }
      }
    }
  }
}

TYPED_TEST(DeltaTest, AnElementHasTheSameBitsInAnyTileAndEitherOrientation) {
  const Index outputs = 53;
  const Index inputs = 71;
  const Index rank = 7;
  const ExactArray<TypeParam> b(outputs, rank, Storage::row_major, 1);
  const ExactArray<TypeParam> a(inputs, rank, Storage::row_major, 2);
  const Matrix<TypeParam> b_transposed = b.view().map().transpose();
  const Matrix<TypeParam> a_transposed = a.view().map().transpose();
  for (const Isa isa : supported_isas()) {
    const Matrix<TypeParam> lines_are_outputs = delta(isa, b, view_of(a_transposed));
    const Matrix<TypeParam> lines_are_inputs = delta(isa, a, view_of(b_transposed));
    EXPECT_EQ(lines_are_outputs, lines_are_inputs.transpose()) << isa_name(isa);
    const Matrix<TypeParam> part = delta(isa, b, view_of(a_transposed).middle_cols(5, 19));
    EXPECT_EQ(part, lines_are_outputs.middleCols(5, 19)) << isa_name(isa);
  }
}

// The naive twin of the fused kernel: one scalar after the other, with exceptions in that order.
template <class Scalar>
kernels::ExactUpdate apply_naively(Scalar* weights, const Scalar* delta, std::int8_t* codes, Index count,
                                   Scalar* originals) {
  kernels::ExactUpdate result{.applied = true};
  for (Index i = 0; i < count; ++i) {
    const Scalar original = weights[i];
    weights[i] = lora::detail::sum(original, delta[i]);
    const auto code = kernels::detail::distance<Scalar>(original, weights[i] - delta[i]);
    result.exceptions += kernels::detail::keep_code<Scalar>(code, original, codes + i, originals + result.exceptions);
  }
  return result;
}

// W with `padding` scalars of no one between its lines, its update, and what updating it leaves.
template <class Scalar>
struct Subject {
  Matrix<Scalar> w, coefficients, factor, memory;
  std::vector<std::int8_t> codes;
  std::vector<Scalar> originals;
  Index padding;

  Subject(Index lines, Index length, Index rank, double scale, Index pad = 0)
      : w(random_matrix<Scalar>(lines, length, 1)),
        coefficients(random_matrix<Scalar>(lines, rank, 2, scale)),
        factor(random_matrix<Scalar>(rank, length + 3, 3)),
        codes(static_cast<std::size_t>(w.size())),
        originals(static_cast<std::size_t>(w.size())),
        padding(pad) {}

  void start() {
    memory = Matrix<Scalar>::Constant(w.rows(), w.cols() + padding, Scalar(77));
    memory.leftCols(w.cols()) = w;
  }
  kernels::ExactUpdate run(Isa isa, UpdateStep step) {
    const kernels::UpdateTile<Scalar> tile{.coefficients = coefficients.data(),
                                           .factor = factor.data() + 3,
                                           .factor_stride = factor.cols(),
                                           .rank = factor.rows(),
                                           .weights = memory.data(),
                                           .line_stride = memory.cols(),
                                           .lines = w.rows(),
                                           .length = w.cols()};
    return kernels::fused_kernel<Scalar>(isa)(tile, step, codes.data(), originals.data());
  }
  [[nodiscard]] Matrix<Scalar> weights() const { return memory.leftCols(w.cols()); }
  [[nodiscard]] Matrix<Scalar> delta(Isa isa) const {
    Matrix<Scalar> out(w.rows(), w.cols());
    kernels::delta_kernel<Scalar>(isa)(coefficients.data(), w.rows(), factor.data() + 3, factor.cols(), factor.rows(),
                                       w.cols(), out.data());
    return out;
  }
};

template <class Scalar>
class FusedUpdateTest : public ::testing::Test {};
TYPED_TEST_SUITE(FusedUpdateTest, Scalars);

// The bits, codes and number of exceptions of the delta kernel followed by the naive update, for every tail.
TYPED_TEST(FusedUpdateTest, DoesWhatTheSeparateKernelsDo) {
  for (const Isa isa : supported_isas()) {
    for (const Index lines : {1, 3, 4, 8, 9, 17}) {
      for (const Index length : {1, 2, 5, 15, 16, 17, 47, 48, 49, 100}) {
        for (const Index rank : {1, 2, 16}) {
          for (const double scale : {1e-3, 1.0, 100.0}) {
            SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::to_string(lines) + " lines of " +
                         std::to_string(length) + ", rank " + std::to_string(rank));
            Subject<TypeParam> subject(lines, length, rank, scale, 5);
            subject.start();
            const auto fused = subject.run(isa, UpdateStep::apply);
            Matrix<TypeParam> expected = subject.w;
            std::vector<std::int8_t> codes(subject.codes.size());
            std::vector<TypeParam> originals(codes.size());
            const auto separate = apply_naively(expected.data(), subject.delta(isa).data(), codes.data(),
                                                expected.size(), originals.data());
            EXPECT_TRUE(fused.applied);
            EXPECT_EQ(fused.exceptions, separate.exceptions);
            EXPECT_EQ(subject.codes, codes);
            ASSERT_TRUE(same_bits(subject.weights(), expected));
            EXPECT_EQ(subject.run(isa, UpdateStep::restore).exceptions, fused.exceptions);
            ASSERT_TRUE(same_bits(subject.weights(), subject.w));
            EXPECT_TRUE((subject.memory.rightCols(5).array() == TypeParam(77)).all());
          }
        }
      }
    }
  }
}

TYPED_TEST(FusedUpdateTest, WhatIsNotFiniteIsReportedAndTakenBack) {
  using Limits = std::numeric_limits<TypeParam>;
  for (const Isa isa : supported_isas()) {
    for (const TypeParam bad : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), Limits::max()}) {
      for (const Index line : {Index{0}, Index{7}, Index{9}}) {
        for (const Index length : {5, 16, 53}) {
          Subject<TypeParam> subject(10, length, 3, 1.0, 1);
          subject.coefficients(line, 1) = bad;
          subject.factor.row(1).setConstant(TypeParam(1));
          subject.w(line, length - 1) = bad == Limits::max() ? bad : TypeParam(1);
          subject.start();
          EXPECT_FALSE(subject.run(isa, UpdateStep::apply).applied);
          (void)subject.run(isa, UpdateStep::restore);
          EXPECT_TRUE(same_bits(subject.weights(), subject.w)) << isa_name(isa);
        }
      }
    }
  }
}

TYPED_TEST(FusedUpdateTest, WeightsThatAreNotFiniteAreRestoredAndStopNothing) {
  using Limits = std::numeric_limits<TypeParam>;
  for (const Isa isa : supported_isas()) {
    Subject<TypeParam> subject(10, 53, 3, 1.0);
    const std::vector<TypeParam> odd = {Limits::infinity(), -Limits::infinity(),  Limits::quiet_NaN(), TypeParam(0),
                                        TypeParam(-0.0),    Limits::denorm_min(), -Limits::min()};
    for (Index i = 0; i < subject.w.size(); i += 5) {
      subject.w.data()[i] = odd[static_cast<std::size_t>(i / 5) % odd.size()];
    }
    subject.start();
    EXPECT_TRUE(subject.run(isa, UpdateStep::apply).applied);
    (void)subject.run(isa, UpdateStep::restore);
    EXPECT_TRUE(same_bits(subject.weights(), subject.w)) << isa_name(isa);
  }
}

template <class Scalar>
std::vector<Scalar> normal(Index count, double scale, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution;
  std::vector<Scalar> values(static_cast<std::size_t>(count));
  for (auto& value : values) value = static_cast<Scalar>(scale * distribution(generator));
  return values;
}

template <class Scalar>
bool same_vectors(const std::vector<Scalar>& a, const std::vector<Scalar>& b) {
  if (a.empty() || b.empty()) return a.size() == b.size();
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Scalar)) == 0;
}

template <class Scalar>
class ScaledUpdateTest : public ::testing::Test {};
TYPED_TEST_SUITE(ScaledUpdateTest, Scalars);

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
  ASSERT_TRUE(same_vectors(weights, start));
}

TYPED_TEST(ScaledUpdateTest, ScalingRestoresEveryBitWhateverTheFactors) {
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

TYPED_TEST(ScaledUpdateTest, ScalingNeedsFewExceptions) {
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

TYPED_TEST(ScaledUpdateTest, AScaledUpdateThatIsNotFiniteIsReportedAndTakenBack) {
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
    EXPECT_TRUE(same_vectors(weights, start));
  }
}

// Few weights need more than their byte where the update is a tenth of them.
TYPED_TEST(FusedUpdateTest, SmallUpdatesNeedFewExceptions) {
  for (const Isa isa : supported_isas()) {
    Subject<TypeParam> subject(96, 1000, 1, 0.1);
    subject.start();
    const auto update = subject.run(isa, UpdateStep::apply);
    // Outside a byte lie weights below |delta| / 128.
    EXPECT_LT(update.exceptions, subject.w.size() / 1000);
  }
}

/// Pairs of a weight and an update that meet every case: anything, near cancellation, moderate, denormal, few bits.
template <class Format>
std::pair<std::uint16_t, float> half_and_delta(std::mt19937& random) {
  const auto half = static_cast<std::uint16_t>(random() & 0xFFFFU);
  const auto draw = [&random] { return static_cast<std::uint32_t>(random()); };
  std::uint32_t bits = draw();
  switch (draw() % 6) {
    case 0:
      break;
    case 1:
      bits = std::bit_cast<std::uint32_t>(-kernels::HalfNumber<Format>::value(half)) + draw() % 4096 - 2048;
      break;
    case 2:
      bits = (bits & 0x80000000U) | draw() % 64;
      break;
    case 3:
      bits &= ~((1U << draw() % 20) - 1);
      break;
    default:
      bits = (bits & 0x807FFFFFU) | (100 + draw() % 30) << 23;
  }
  return {half, std::bit_cast<float>(bits)};
}

template <class Format>
class HalfUpdateTest : public ::testing::Test {};
using HalfFormats = ::testing::Types<formats::F16, formats::BF16>;
TYPED_TEST_SUITE(HalfUpdateTest, HalfFormats);

TYPED_TEST(HalfUpdateTest, FourAtATimeIsOneByOne) {
  const DefaultFloatingPoint environment;
  constexpr Index count = 7;  // four, and a rest
  const float one = 1;
  const kernels::RunFactors<float> run{&one, &one, 0};
  std::mt19937 random(3);
  Index ordinary = 0;
  for (int repetition = 0; repetition < 20000; ++repetition) {
    std::array<std::uint16_t, count> given{};
    std::array<float, count> delta{};
    for (std::size_t i = 0; i < count; ++i) std::tie(given[i], delta[i]) = half_and_delta<TypeParam>(random);
    auto expected = given;
    auto weights = given;
    std::array<std::int8_t, count> expected_codes{}, codes{};
    std::array<std::uint16_t, count> expected_originals{}, originals{};
    const auto by_one = kernels::detail::apply_half_elements<TypeParam>(
        expected.data(), delta.data(), run, expected_codes.data(), count, expected_originals.data());
    const auto result =
        kernels::apply_half<TypeParam>(weights.data(), delta.data(), run, codes.data(), count, originals.data());
    ASSERT_EQ(weights, expected);
    ASSERT_EQ(codes, expected_codes);
    ASSERT_EQ(originals, expected_originals);
    ASSERT_EQ(result.applied, by_one.applied);
    ASSERT_EQ(result.exceptions, by_one.exceptions);
    kernels::restore_half<TypeParam>(weights.data(), delta.data(), run, codes.data(), count, originals.data());
    ASSERT_EQ(weights, given);
    kernels::detail::restore_half_elements<TypeParam>(expected.data(), delta.data(), run, codes.data(), count,
                                                      originals.data());
    ASSERT_EQ(expected, given);
    ordinary += result.exceptions == 0 ? 1 : 0;
  }
  EXPECT_GT(ordinary, 100);
}

}  // namespace
}  // namespace lora
