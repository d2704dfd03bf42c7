// SPDX-License-Identifier: MIT
// Compute::bf16 and Compute::int8: within the stated error, whatever the batch, the threads and the storage.
#include "lora/weight/compute.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "lora/layers/linear.hpp"
#include "lora/weight/quantized.hpp"
#include "support/allocation_count.hpp"
#include "support/bits.hpp"
#include "support/random_blocks.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace compute_test {
namespace {

using testing::decoded;
using testing::random_blocks;
using testing::random_matrix;
using testing::same_bits;

MatrixView<const float> in(const Matrix<float>& m) { return view_of(m); }

/// A format and an arithmetic.
template <class Format_, Compute compute>
struct Case {
  using Format = Format_;
  using Weight = QuantizedWeight<Format, compute>;
};

/// sum over blocks of 32 inputs of (largest |x| / 254) * sum of |w|.
double int8_rounding(const Matrix<float>& x, Index i, const Matrix<float>& w, Index j) {
  double bound = 0;
  for (Index q = 0; q < w.cols(); q += 32) {
    const double largest = static_cast<double>(x.row(i).segment(q, 32).cwiseAbs().maxCoeff());
    bound += largest / 254 * static_cast<double>(w.row(j).segment(q, 32).cwiseAbs().sum());
  }
  return bound;
}

double stated_bound(Compute compute, const Matrix<float>& x, Index i, const Matrix<float>& w, Index j) {
  const auto magnitudes = (x.row(i).cast<double>().cwiseAbs().cwiseProduct(w.row(j).cast<double>().cwiseAbs())).sum();
  const auto inputs = static_cast<double>(w.cols());
  if (compute == Compute::bf16) return (0x1p-8 + 0x1p-17 + inputs * 0x1p-23) * magnitudes;
  return int8_rounding(x, i, w, j) + (0x1p-20 + inputs / 32 * 0x1p-23) * magnitudes;
}

template <class T>
class ComputeTest : public ::testing::Test {
 protected:
  using Weight = typename T::Weight;
  static constexpr Index outputs = 101;
  static constexpr Index inputs = 1056;

  std::vector<std::uint8_t> blocks = random_blocks<typename T::Format>(outputs, inputs, 1);
  Matrix<float> values = decoded<typename T::Format>(blocks, outputs, inputs);
  Weight weight = Weight::from_blocks(blocks, outputs, inputs);
  Matrix<float> x = random_matrix<float>(19, inputs, 2);

  Matrix<float> product(const Weight& with, const MatrixView<const float>& batch, Executor& executor) const {
    Workspace workspace(executor);
    Matrix<float> y(batch.rows, outputs);
    with.product(batch, nullptr, {}, view_of(y), workspace);
    return y;
  }
};

using Cases = ::testing::Types<Case<formats::BF16, Compute::bf16>, Case<formats::Q4_0, Compute::bf16>,
                               Case<formats::Q5_0, Compute::bf16>, Case<formats::Q8_0, Compute::int8>,
                               Case<formats::Q5_0, Compute::int8>, Case<formats::Q4_0, Compute::int8>>;

struct CaseName {
  template <class T>
  static std::string GetName(int /*index*/) {
    constexpr Compute compute = T::Weight::compute;
    return std::string(T::Format::name) + (compute == Compute::bf16 ? "InBf16" : "InInt8");
  }
};
TYPED_TEST_SUITE(ComputeTest, Cases, CaseName);

TYPED_TEST(ComputeTest, StaysWithinTheStatedError) {
  SerialExecutor serial;
  const Matrix<float> y = this->product(this->weight, in(this->x), serial);
  for (Index i = 0; i < y.rows(); ++i) {
    for (Index j = 0; j < y.cols(); ++j) {
      const double exact = this->x.row(i).template cast<double>().dot(this->values.row(j).template cast<double>());
      const double bound = stated_bound(TypeParam::Weight::compute, this->x, i, this->values, j);
      ASSERT_LE(std::abs(static_cast<double>(y(i, j)) - exact), bound) << i << ", " << j;
    }
  }
}

TYPED_TEST(ComputeTest, ARowDependsNeitherOnTheBatchNorOnThreadsNorOnStorage) {
  SerialExecutor serial;
  testing::ThreadExecutor threads(3);
  const Matrix<float> y = this->product(this->weight, in(this->x), serial);
  const auto in_place = TypeParam::Weight::in_place(this->blocks, this->outputs, this->inputs);
  EXPECT_TRUE(same_bits(this->product(this->weight, in(this->x), threads), y));
  EXPECT_TRUE(same_bits(this->product(in_place, in(this->x), serial), y));
  const Matrix<float> turned = this->x.transpose();
  EXPECT_TRUE(same_bits(this->product(this->weight, in(turned).transpose(), serial), y));
  for (Index i = 0; i < y.rows(); ++i) {
    EXPECT_TRUE(same_bits(this->product(this->weight, in(this->x).middle_rows(i, 1), serial), y.row(i)));
  }
}

TYPED_TEST(ComputeTest, GradientsAndLowRankTermsAreThoseOfExactArithmetic) {
  const auto exact =
      QuantizedWeight<typename TypeParam::Format>::from_blocks(this->blocks, this->outputs, this->inputs);
  const auto u = random_matrix<float>(19, 5, 3);
  const auto f = random_matrix<float>(5, this->outputs, 4);
  const auto bias = random_matrix<float>(1, this->outputs, 5);
  const auto dy = random_matrix<float>(19, this->outputs, 6);
  Workspace workspace;
  Matrix<float> dx(19, this->inputs);
  Matrix<float> expected(19, this->inputs);
  this->weight.product_transposed(in(dy), {}, view_of(dx), workspace);
  exact.product_transposed(in(dy), {}, view_of(expected), workspace);
  EXPECT_TRUE(same_bits(dx, expected));

  Matrix<float> y(19, this->outputs);
  Matrix<float> in_steps(19, this->outputs);
  this->weight.product(in(this->x), bias.data(), {in(u), in(f)}, view_of(y), workspace);
  this->weight.product(in(this->x), bias.data(), {}, view_of(in_steps), workspace);
  kernels::add_low_rank<float>(in(u), in(f), view_of(in_steps), workspace);
  EXPECT_TRUE(same_bits(y, in_steps));
}

TYPED_TEST(ComputeTest, ARepeatedProductAllocatesNothing) {
  Workspace workspace;
  Matrix<float> y(19, this->outputs);
  const auto run = [&] { this->weight.product(in(this->x), nullptr, {}, view_of(y), workspace); };
  run();
  EXPECT_EQ(testing::allocations_of(run), 0);
}

// With B = 0 the adapter adds nothing, and neither gradient depends on what the base product rounds.
TYPED_TEST(ComputeTest, ALayerOverItTrainsAsOverTheExactOne) {
  using Exact = QuantizedWeight<typename TypeParam::Format>;
  const LoraConfig config{.rank = 4, .alpha = 8};
  LoraLinear<float, typename TypeParam::Weight> layer(this->weight, config, 7);
  LoraLinear<float, Exact> exact(Exact::from_blocks(this->blocks, this->outputs, this->inputs), config, 7);
  const auto dy = random_matrix<float>(19, this->outputs, 8);
  SerialExecutor serial;
  EXPECT_TRUE(same_bits(layer.forward(this->x), this->product(this->weight, in(this->x), serial)));
  EXPECT_FALSE(same_bits(exact.forward(this->x), layer.infer(this->x)));
  EXPECT_TRUE(same_bits(layer.backward(dy), exact.backward(dy)));
  EXPECT_GT(layer.gradients().B.norm(), 0);
  EXPECT_TRUE(same_bits(layer.gradients().B, exact.gradients().B));
}

}  // namespace
}  // namespace compute_test
}  // namespace lora
