// SPDX-License-Identifier: MIT
// DoRA's passes against their formulas, for every layout of the inputs and every number of workers.
#include "lora/kernels/columns.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "lora/kernels/row_norms.hpp"
#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::ExactArray;
using testing::random_matrix;
using testing::same_bits;
using testing::Storage;
using testing::supported_isas;
using testing::ThreadExecutor;

template <class Scalar>
class ColumnsTest : public ::testing::Test {
 protected:
  static constexpr Scalar epsilon = std::numeric_limits<Scalar>::epsilon();
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ColumnsTest, Scalars);

struct Shape {
  Index rows, cols;
};
const std::vector<Shape> shapes = {{0, 5}, {1, 1}, {1, 70}, {3, 15}, {4, 16}, {5, 17}, {7, 48}, {33, 131}, {70, 300}};
const std::vector<Storage> storages = {Storage::row_major, Storage::column_major, Storage::strided};

std::vector<std::uint8_t> mask_bytes(Index rows, Index cols) {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(rows * ((cols + 7) / 8)));
  std::uint32_t state = 77;
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>((state = state * 1664525U + 1013904223U) >> 24U);
  return bytes;
}

// All results of one set of inputs, one below the other.
template <class Scalar>
Matrix<Scalar> run_all(const MatrixView<const Scalar>& z, const MatrixView<const Scalar>& dy,
                       const DropoutMask<Scalar>& mask, Workspace& workspace, Isa isa) {
  const Index n = z.rows;
  Matrix<Scalar> out = random_matrix<Scalar>(5 * n + 2, z.cols, 3);
  const Matrix<Scalar> factors = random_matrix<Scalar>(1, z.cols, 4);
  const Matrix<Scalar> bias = random_matrix<Scalar>(1, z.cols, 5);
  const auto part = [&](Index i) { return view_of(out).middle_rows(i * n, n); };
  kernels::scale_columns(z, factors.data(), bias.data(), part(0), workspace, isa);
  kernels::scale_columns(z, factors.data(), static_cast<const Scalar*>(nullptr), part(1), workspace, isa);
  kernels::add_scaled_columns(z, factors.data(), part(2), workspace, isa);
  kernels::keep_inputs(z, mask, part(3), workspace, isa);
  kernels::rest_inputs(z, mask, part(4), workspace, isa);
  kernels::add_column_products(dy, z, &out(5 * n, 0), workspace, isa);
  kernels::add_column_sums(dy, Scalar(0.75), &out(5 * n + 1, 0), workspace, isa);
  return out;
}

TYPED_TEST(ColumnsTest, AreTheirFormulas) {
  using Scalar = TypeParam;
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    for (const Shape shape : shapes) {
      for (const bool masked : {false, true}) {
        const Index n = shape.rows;
        const auto z = random_matrix<Scalar>(n, shape.cols, 1);
        const auto dy = random_matrix<Scalar>(n, shape.cols, 2);
        const auto before = random_matrix<Scalar>(5 * n + 2, shape.cols, 3);
        const auto factors = random_matrix<Scalar>(1, shape.cols, 4);
        const auto bias = random_matrix<Scalar>(1, shape.cols, 5);
        const auto bytes = mask_bytes(n, shape.cols);
        const DropoutMask<Scalar> mask =
            masked ? DropoutMask<Scalar>{bytes.data(), (shape.cols + 7) / 8, Scalar(1.25)} : DropoutMask<Scalar>{};
        const auto got = run_all<Scalar>(view_of(z), view_of(dy), mask, workspace, isa);
        // Numbers below 1.25: every rounding but the last is of a value below 2.5.
        for (Index j = 0; j < shape.cols; ++j) {
          double products = 0, sum = 0;
          for (Index i = 0; i < n; ++i) {
            const auto zij = static_cast<double>(z(i, j));
            const auto f = static_cast<double>(factors(0, j));
            const double drop = mask.keeps(i, j) ? static_cast<double>(mask.scale) * zij : 0;
            ASSERT_NEAR(got(i, j), f * zij + static_cast<double>(bias(0, j)), 4 * this->epsilon);
            ASSERT_NEAR(got(n + i, j), f * zij, 4 * this->epsilon);
            ASSERT_NEAR(got(2 * n + i, j), static_cast<double>(before(2 * n + i, j)) + f * zij, 4 * this->epsilon);
            ASSERT_EQ(got(3 * n + i, j), mask.keeps(i, j) ? mask.scale * z(i, j) : Scalar(0)) << isa_name(isa);
            ASSERT_NEAR(got(4 * n + i, j), zij - drop, 4 * this->epsilon);
            products += static_cast<double>(dy(i, j)) * zij;
            sum += static_cast<double>(dy(i, j));
          }
          const double bound = (static_cast<double>(n) + 4) * static_cast<double>(n + 2) * this->epsilon;
          ASSERT_NEAR(got(5 * n, j), static_cast<double>(before(5 * n, j)) + products, bound);
          ASSERT_NEAR(got(5 * n + 1, j), static_cast<double>(before(5 * n + 1, j)) + 0.75 * sum, bound);
        }
      }
    }
  }
}

TYPED_TEST(ColumnsTest, EveryLayoutAndNumberOfWorkersGivesTheSameBits) {
  using Scalar = TypeParam;
  for (const Isa isa : supported_isas()) {
    for (const Shape shape : shapes) {
      for (const bool masked : {false, true}) {
        const auto bytes = mask_bytes(shape.rows, shape.cols);
        const DropoutMask<Scalar> mask =
            masked ? DropoutMask<Scalar>{bytes.data(), (shape.cols + 7) / 8, Scalar(1.25)} : DropoutMask<Scalar>{};
        for (const Storage storage : storages) {
          const ExactArray<Scalar> z(shape.rows, shape.cols, storage, 1);
          const ExactArray<Scalar> dy(shape.rows, shape.cols, storage, 2);
          const Matrix<Scalar> same_z = z.view().map();
          const Matrix<Scalar> same_dy = dy.view().map();
          Workspace serial;
          const auto expected = run_all<Scalar>(view_of(same_z), view_of(same_dy), mask, serial, isa);
          for (const int workers : {1, 3}) {
            ThreadExecutor executor(workers);
            Workspace workspace(executor);
            ASSERT_TRUE(same_bits(run_all<Scalar>(z.input(), dy.input(), mask, workspace, isa), expected))
                << isa_name(isa) << " " << shape.rows << " x " << shape.cols << " storage " << static_cast<int>(storage)
                << " workers " << workers;
            ASSERT_TRUE(same_bits(run_all<Scalar>(z.input(), view_of(same_dy), mask, workspace, isa), expected));
          }
        }
      }
    }
  }
}

TYPED_TEST(ColumnsTest, ScalingInPlaceIsScalingElsewhere) {
  using Scalar = TypeParam;
  Workspace workspace;
  const auto factors = random_matrix<Scalar>(1, 53, 4);
  for (const Isa isa : supported_isas()) {
    Matrix<Scalar> z = random_matrix<Scalar>(9, 53, 1);
    Matrix<Scalar> y(9, 53);
    kernels::scale_columns<Scalar>(view_of(z), factors.data(), factors.data(), view_of(y), workspace, isa);
    kernels::scale_columns<Scalar>(view_of(z), factors.data(), factors.data(), view_of(z), workspace, isa);
    EXPECT_TRUE(same_bits(z, y)) << isa_name(isa);
  }
}

TYPED_TEST(ColumnsTest, DroppedInfinitiesAndNansAreZeros) {
  using Scalar = TypeParam;
  Workspace workspace;
  const std::vector<std::uint8_t> bytes(4, 0);
  const DropoutMask<Scalar> mask{bytes.data(), 4, Scalar(2)};
  for (const Isa isa : supported_isas()) {
    Matrix<Scalar> x = Matrix<Scalar>::Constant(1, 27, std::numeric_limits<Scalar>::quiet_NaN());
    x(0, 5) = std::numeric_limits<Scalar>::infinity();
    Matrix<Scalar> out(1, 27);
    kernels::keep_inputs<Scalar>(view_of(x), mask, view_of(out), workspace, isa);
    EXPECT_TRUE((out.array() == 0).all()) << isa_name(isa);
  }
}

// The factors of a weight, and what the kernel takes of them.
template <class Scalar>
struct Norms {
  Matrix<double> w, a, b;
  double scale;
  Matrix<Scalar> projected, gram, b_scalar;
  std::vector<double> squared, norms;
  std::vector<std::uint8_t> cancels;

  Norms(Matrix<double> weight, Matrix<double> down, Matrix<double> up, double s)
      : w(std::move(weight)), a(std::move(down)), b(std::move(up)), scale(s) {
    // Rounded first, so that every formula sees the same numbers.
    w = w.cast<Scalar>().template cast<double>().eval();
    a = a.cast<Scalar>().template cast<double>().eval();
    b_scalar = b.cast<Scalar>();
    b = b_scalar.template cast<double>();
    projected = (a * w.transpose()).cast<Scalar>();
    gram = (a * a.transpose()).cast<Scalar>();
    for (Index j = 0; j < w.rows(); ++j) squared.push_back(w.row(j).squaredNorm());
    norms.assign(squared.size(), -1);
    cancels.assign(squared.size(), 9);
  }
  void run(Workspace& workspace, Isa isa, const MatrixView<const Scalar>& up) {
    kernels::adapted_row_norms<Scalar>(squared.data(), view_of(projected), view_of(gram), up,
                                       static_cast<Scalar>(scale), norms.data(), cancels.data(), workspace, isa);
  }
  [[nodiscard]] double exact(Index j) const { return (w.row(j) + scale * b.row(j) * a).norm(); }
};

TYPED_TEST(ColumnsTest, RowNormsAreThoseOfTheDenseSum) {
  using Scalar = TypeParam;
  for (const Isa isa : supported_isas()) {
    for (const Index d : {0, 1, 7, 31, 32, 33, 64, 130}) {
      for (const Index rank : {1, 2, 8, 17}) {
        for (const int workers : {1, 3}) {
          ThreadExecutor executor(workers);
          Workspace workspace(executor);
          Norms<Scalar> norms(random_matrix<double>(d, 40, 1), random_matrix<double>(rank, 40, 2),
                              random_matrix<double>(d, rank, 3), 0.5);
          const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> by_columns = norms.b_scalar;
          norms.run(workspace, isa, view_of(norms.b_scalar));
          const std::vector<double> first = norms.norms;
          for (Index j = 0; j < d; ++j) {
            // Roundings of projected and gram to Scalar: each of the r + r^2 terms is below a tenth of 40 r.
            const double terms = norms.squared[static_cast<std::size_t>(j)] + 40.0 * static_cast<double>(rank * rank);
            const double exact = norms.exact(j);
            ASSERT_NEAR(first[static_cast<std::size_t>(j)], exact,
                        4 * std::numeric_limits<Scalar>::epsilon() * terms / std::max(exact, 1e-3))
                << isa_name(isa) << " d " << d << " r " << rank;
            ASSERT_EQ(norms.cancels[static_cast<std::size_t>(j)], 0) << j;
          }
          norms.run(workspace, isa, view_of(by_columns));
          ASSERT_EQ(norms.norms, first);
        }
      }
    }
  }
}

TYPED_TEST(ColumnsTest, RowNormsFlagRowsThatCancelAndSurviveLargeOnes) {
  using Scalar = TypeParam;
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    const Matrix<double> a = random_matrix<double>(2, 40, 2);
    const Matrix<double> b = random_matrix<double>(70, 2, 3);
    Matrix<double> w = random_matrix<double>(70, 40, 1);
    w.row(5) = -b.row(5) * a;           // cancels
    w.row(64) = -0.97 * b.row(64) * a;  // nearly
    w.row(33).setZero();                // a row of zeros does not cancel
    w.row(40).setConstant(1e20);        // its square is no float
    Norms<Scalar> norms(w, a, b, 1.0);
    norms.run(workspace, isa, view_of(norms.b_scalar));
    for (Index j = 0; j < 70; ++j) {
      ASSERT_EQ(norms.cancels[static_cast<std::size_t>(j)], j == 5 || j == 64 ? 1 : 0) << isa_name(isa) << " " << j;
    }
    EXPECT_NEAR(norms.norms[40] / norms.exact(40), 1, 1e-6);
    EXPECT_NEAR(norms.norms[33], norms.exact(33), 1e-5 * norms.exact(33));
    EXPECT_GE(norms.norms[5], 0);
  }
}

// As everywhere in the library, a call that is repeated allocates nothing.
TYPED_TEST(ColumnsTest, ScratchIsReused) {
  using Scalar = TypeParam;
  const ExactArray<Scalar> z(40, 100, Storage::column_major, 1);
  Workspace workspace;
  (void)run_all<Scalar>(z.input(), z.input(), {}, workspace, active_isa());
  const std::size_t bytes = workspace.bytes();
  for (int i = 0; i < 3; ++i) (void)run_all<Scalar>(z.input(), z.input(), {}, workspace, active_isa());
  EXPECT_EQ(workspace.bytes(), bytes);
}

}  // namespace
}  // namespace lora
