#include "lora/kernels/fused_update.hpp"

#include <algorithm>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using kernels::UpdateStep;
using testing::random_matrix;
using testing::same_bits;
using testing::supported_isas;

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
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(FusedUpdateTest, Scalars);

// The bits, codes and number of exceptions of the delta kernel followed by the exact update, for every tail.
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
            const auto separate = kernels::apply_exact(expected.data(), subject.delta(isa).data(), codes.data(),
                                                       expected.size(), originals.data(), isa);
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

}  // namespace
}  // namespace lora
