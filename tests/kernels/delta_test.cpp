#include "lora/kernels/delta.hpp"

#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "support/kernel_oracle.hpp"

namespace lora {
namespace {

using testing::ExactArray;
using testing::Oracle;
using testing::Storage;
using testing::supported_isas;

template <class Scalar>
class DeltaTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
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

}  // namespace
}  // namespace lora
