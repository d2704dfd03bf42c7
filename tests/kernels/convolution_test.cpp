// SPDX-License-Identifier: MIT
// Convolution by panels against products with the whole unfolding, and its adjoints against their definitions.
#include "lora/kernels/convolution.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora::kernels {
namespace {

using lora::testing::Oracle;
using lora::testing::random_matrix;
using lora::testing::random_vector;

template <class Scalar>
class Convolution : public ::testing::Test {
 protected:
  // Two groups; 2 * 3 * 5 = 30 positions over samples of 15, and lines beyond the parts that the adjoint takes.
  const ConvShape shape{{.input = {1, 5, 7},
                         .output = {1, 3, 5},
                         .kernel = {1, 3, 3},
                         .stride = {1, 2, 2},
                         .padding = {0, 1, 2},
                         .dilation = {1, 1, 1}},
                        4,
                        2,
                        37,
                        11,
                        3};
  const Index positions = shape.positions();
  const Index size = shape.walk.output_size();
  const Matrix<Scalar> x = random_matrix<Scalar>(4, 2 * 37 * 35, 1);
  const Matrix<Scalar> weight = random_matrix<Scalar>(22, shape.fan_in(), 2);
  const Matrix<Scalar> a = random_matrix<Scalar>(6, shape.fan_in(), 3);
  const Matrix<Scalar> b = random_matrix<Scalar>(22, 3, 4);
  const Matrix<Scalar> dy = random_matrix<Scalar>(4, 22 * size, 5);
  const RowVector<Scalar> bias = random_vector<Scalar>(22, 6);

  // A call with the weight and the factors; the caller sets what it writes.
  [[nodiscard]] ConvCall<Scalar> adapted_call() const {
    ConvCall<Scalar> call;
    call.shape = shape;
    call.x = view_of(x);
    call.weight = view_of(weight);
    call.a = view_of(a);
    call.b = view_of(b);
    return call;
  }
  // Lines of group g at all positions.
  [[nodiscard]] Matrix<Scalar> unfolded(Index g) const {
    Matrix<Scalar> lines(shape.fan_in(), positions);
    unfold<Scalar>(shape.walk, view_of(x), {}, {g * shape.fan_in(), shape.fan_in(), 0, positions}, lines.data(),
                   positions);
    return lines;
  }
  // Output channels of group g of images as channels x positions.
  [[nodiscard]] Matrix<Scalar> outputs(const Matrix<Scalar>& images, Index g) const {
    Matrix<Scalar> lines(11, positions);
    for (Index o = 0; o < 11; ++o)
      for (Index p = 0; p < positions; ++p) lines(o, p) = images(p / size, (g * 11 + o) * size + p % size);
    return lines;
  }
};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Convolution, Scalars);

TYPED_TEST(Convolution, IsTheProductWithTheUnfoldedInput) {
  using Scalar = TypeParam;
  Matrix<Scalar> u(6, this->positions), y(4, 22 * this->size);
  ConvCall<Scalar> call = this->adapted_call();
  call.scale = Scalar(0.5);
  call.bias = this->bias.data();
  call.u = view_of(u);
  call.y = view_of(y);
  Workspace workspace;
  convolve(call, workspace);
  for (Index g = 0; g < 2; ++g) {
    const auto lines = this->unfolded(g);
    const Matrix<Scalar> u_g = u.middleRows(3 * g, 3);
    const Matrix<Scalar> column = this->bias.segment(11 * g, 11).transpose();
    const Matrix<Scalar> ones = Matrix<Scalar>::Ones(1, this->positions);
    Oracle expected_u(3, this->positions);
    expected_u.template add_product<Scalar>(1, view_of(this->a).middle_rows(3 * g, 3), view_of(lines));
    expected_u.expect_near(view_of(u_g), "U");
    Oracle expected(11, this->positions);
    expected.template add_product<Scalar>(1, view_of(this->weight).middle_rows(11 * g, 11), view_of(lines));
    expected.template add_product<Scalar>(0.5, view_of(this->b).middle_rows(11 * g, 11), view_of(u_g));
    expected.template add_product<Scalar>(1, view_of(column), view_of(ones));
    const auto got = this->outputs(y, g);
    expected.expect_near(view_of(got), "Y");
  }
}

TYPED_TEST(Convolution, FactorsScaleOutputsBeforeTheBias) {
  using Scalar = TypeParam;
  Matrix<Scalar> y(4, 22 * this->size), plain = y, z = y;
  const auto factors = random_vector<Scalar>(22, 9);
  ConvCall<Scalar> call = this->adapted_call();
  call.y = view_of(plain);
  Workspace workspace;
  convolve(call, workspace);
  call.factors = factors.data();
  call.bias = this->bias.data();
  call.y = view_of(y);
  call.z = view_of(z);
  convolve(call, workspace);
  EXPECT_TRUE(lora::testing::same_bits(z, plain));
  for (Index i = 0; i < y.rows(); ++i) {
    for (Index j = 0; j < y.cols(); ++j) {
      const Index o = j / this->size;
      const double exact = double(factors[o]) * double(z(i, j)) + double(this->bias[o]);
      const double magnitude = std::abs(double(factors[o]) * double(z(i, j))) + std::abs(double(this->bias[o]));
      EXPECT_NEAR(double(y(i, j)), exact, 2 * std::numeric_limits<Scalar>::epsilon() * magnitude);
    }
  }
}

TYPED_TEST(Convolution, ProjectsOutputGradients) {
  using Scalar = TypeParam;
  const auto factors = random_vector<Scalar>(22, 9);
  Matrix<Scalar> v(6, this->positions);
  Workspace workspace;
  for (const bool scaled : {false, true}) {
    project_outputs<Scalar>(this->shape, view_of(this->dy), view_of(this->b), Scalar(2),
                            scaled ? factors.data() : nullptr, view_of(v), workspace);
    for (Index g = 0; g < 2; ++g) {
      const auto dy_g = this->outputs(this->dy, g);
      Matrix<Scalar> b_g = this->b.middleRows(11 * g, 11);
      if (scaled) b_g = (factors.segment(11 * g, 11).transpose().asDiagonal() * b_g).eval();
      const Matrix<Scalar> got = v.middleRows(3 * g, 3);
      Oracle expected(3, this->positions);
      expected.template add_product<Scalar>(2, view_of(b_g).transpose(), view_of(dy_g));
      expected.expect_near(view_of(got), "V");
    }
  }
}

TYPED_TEST(Convolution, SumsLineProducts) {
  using Scalar = TypeParam;
  const auto v = random_matrix<Scalar>(6, this->positions, 8);
  const Index fan_in = this->shape.fan_in();
  Matrix<Scalar> sums = Matrix<Scalar>::Zero(2 * fan_in, 3);
  Workspace workspace;
  LineProductCall<Scalar> call;
  call.walk = this->shape.walk;
  call.groups = 2;
  call.group_lines = fan_in;
  call.group_rank = 3;
  call.images = view_of(this->x);
  call.lines = view_of(v);
  call.scale = Scalar(0.5);
  add_line_products(call, workspace, [&](Index line, Index p, Scalar sum) { sums(line, p) += sum; });
  for (Index g = 0; g < 2; ++g) {
    const auto lines = this->unfolded(g);
    const Matrix<Scalar> got = sums.middleRows(g * fan_in, fan_in);
    Oracle expected(fan_in, 3);
    expected.template add_product<Scalar>(0.5, view_of(lines), view_of(v).middle_rows(3 * g, 3).transpose());
    expected.expect_near(view_of(got), "sums");
  }
}

TYPED_TEST(Convolution, AdjointFoldsTheProductsWithTransposedWeights) {
  using Scalar = TypeParam;
  const auto v = random_matrix<Scalar>(6, this->positions, 8);
  Matrix<Scalar> dx(4, this->x.cols());
  Workspace workspace;
  ConvAdjointCall<Scalar> call;
  call.shape = this->shape;
  call.dy = view_of(this->dy);
  call.v = view_of(v);
  call.weight = view_of(this->weight);
  call.a = view_of(this->a);
  call.dx = view_of(dx);
  convolve_adjoint(call, workspace);
  Matrix<double> expected = Matrix<double>::Zero(dx.rows(), dx.cols());
  Matrix<double> magnitude = expected;
  for (Index g = 0; g < 2; ++g) {
    const Index fan_in = this->shape.fan_in();
    const Matrix<double> w_g = this->weight.middleRows(11 * g, 11).template cast<double>();
    const Matrix<double> a_g = this->a.middleRows(3 * g, 3).template cast<double>();
    const Matrix<double> dy_g = this->outputs(this->dy, g).template cast<double>();
    const Matrix<double> v_g = v.middleRows(3 * g, 3).template cast<double>();
    const Matrix<double> lines = w_g.transpose() * dy_g + a_g.transpose() * v_g;
    const Matrix<double> sizes =
        w_g.cwiseAbs().transpose() * dy_g.cwiseAbs() + a_g.cwiseAbs().transpose() * v_g.cwiseAbs();
    const UnfoldBlock block{g * fan_in, fan_in, 0, this->positions};
    add_folded<double>(this->shape.walk, lines.data(), this->positions, block, {}, view_of(expected));
    add_folded<double>(this->shape.walk, sizes.data(), this->positions, block, {}, view_of(magnitude));
  }
  // 11 + 3 products of a chain, then at most 9 taps.
  for (Index i = 0; i < dx.rows(); ++i)
    for (Index j = 0; j < dx.cols(); ++j)
      EXPECT_NEAR(double(dx(i, j)), expected(i, j), 24 * std::numeric_limits<Scalar>::epsilon() * magnitude(i, j));
}

// Factors multiply rows of the weight, of every group its own: over a weight that has been multiplied before, the bits
// are the same. Those of the dropped weight are added to it where the mask keeps.
TYPED_TEST(Convolution, AdjointScalesTheWeightByTheFactorsOfItsOutputs) {
  using Scalar = TypeParam;
  const auto v = random_matrix<Scalar>(6, this->positions, 8);
  const auto factors = random_vector<Scalar>(22, 9);
  Workspace workspace;
  const auto adjoint = [&](const Matrix<Scalar>& w, const Scalar* weight_factors, const Scalar* dropped_factors,
                           const DropoutMask<Scalar>& mask) {
    Matrix<Scalar> dx(4, this->x.cols());
    convolve_adjoint(ConvAdjointCall<Scalar>{this->shape, view_of(this->dy), view_of(v), view_of(w), view_of(this->a),
                                             mask, weight_factors, dropped_factors, view_of(dx)},
                     workspace);
    return dx;
  };
  const Matrix<Scalar> scaled = factors.asDiagonal() * this->weight;
  EXPECT_EQ(adjoint(this->weight, factors.data(), nullptr, {}), adjoint(scaled, nullptr, nullptr, {}));

  const Index row_bytes = (this->x.cols() + 7) / 8;
  const std::vector<std::uint8_t> all(static_cast<std::size_t>(4 * row_bytes), 0xFF);
  const Matrix<Scalar> both = this->weight + scaled;
  const Matrix<Scalar> got = adjoint(this->weight, nullptr, factors.data(), {all.data(), row_bytes, Scalar(1)});
  const Matrix<Scalar> expected = adjoint(both, nullptr, nullptr, {});
  // Elements are below 1, so that sums of 11 + 3 products over at most 9 taps, twice, are below 9 * 2 * 14.
  EXPECT_LE((got - expected).cwiseAbs().maxCoeff(), 24 * 252 * std::numeric_limits<Scalar>::epsilon());
  EXPECT_GT((got - adjoint(this->weight, nullptr, nullptr, {})).cwiseAbs().maxCoeff(), Scalar(0.1));
}

}  // namespace
}  // namespace lora::kernels
