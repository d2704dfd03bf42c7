// SPDX-License-Identifier: MIT
#include "lora/kernels/low_rank.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <string>
#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::ExactArray;
using testing::Oracle;
using testing::Storage;
using testing::supported_isas;
using testing::ThreadExecutor;

/// A mask of exactly as many bytes as it needs; without `active`, the mask that keeps everything.
template <class Scalar>
class Mask {
 public:
  Mask(Index rows, Index cols, bool active) : row_bytes_((cols + 7) / 8), active_(active) {
    std::uint32_t state = 12345;
    for (Index i = 0; i < rows * row_bytes_; ++i) {
      state = state * 1664525U + 1013904223U;
      bits_.push_back(static_cast<std::uint8_t>(state >> 24U));
    }
    bits_.shrink_to_fit();
  }
  [[nodiscard]] DropoutMask<Scalar> view() const {
    return active_ ? DropoutMask<Scalar>{bits_.data(), row_bytes_, Scalar(1.25)} : DropoutMask<Scalar>{};
  }
  /// `array` with dropped elements zero and the others as they are.
  [[nodiscard]] Matrix<Scalar> keep(const MatrixView<const Scalar>& array) const {
    Matrix<Scalar> kept = array.map();
    for (Index i = 0; i < kept.rows(); ++i) {
      for (Index j = 0; j < kept.cols(); ++j) {
        if (!view().keeps(i, j)) kept(i, j) = 0;
      }
    }
    return kept;
  }

 private:
  Index row_bytes_;
  bool active_;
  std::vector<std::uint8_t> bits_;
};

struct Case {
  Index rows;
  Index cols;
  Index rank;
  Storage storage = Storage::row_major;

  [[nodiscard]] std::string text(Isa isa, bool masked) const {
    return std::string(isa_name(isa)) + (masked ? " masked" : "") + " N " + std::to_string(rows) + " m " +
           std::to_string(cols) + " r " + std::to_string(rank) + " storage " +
           std::to_string(static_cast<int>(storage));
  }
};

template <class Scalar>
MatrixView<const Scalar> constant(const Matrix<Scalar>& matrix) {
  return view_of(matrix);
}

template <class Scalar>
void expect_products(const Case& c, Isa isa, bool masked, Workspace& workspace) {
  const Scalar scale(0.75);
  const ExactArray<Scalar> x(c.rows, c.cols, c.storage, 1);
  const ExactArray<Scalar> f(c.rank, c.cols, Storage::row_major, 2);
  const ExactArray<Scalar> v(c.rows, c.rank, c.storage, 3);
  const Mask<Scalar> mask(c.rows, c.cols, masked);
  const double mask_scale = static_cast<double>(mask.view().scale);
  const Matrix<Scalar> kept = mask.keep(x.input());

  const ExactArray<Scalar> u(c.rows, c.rank, Storage::row_major, 4);
  kernels::project_down(x.input(), mask.view(), f.input(), scale, u.view(), workspace, isa);
  Oracle down(c.rows, c.rank);
  down.add_product(static_cast<double>(scale) * mask_scale, constant(kept), f.input().transpose());
  down.expect_near(u.view(), "project_down " + c.text(isa, masked));

  const ExactArray<Scalar> y(c.rows, c.cols, Storage::row_major, 5);
  const Matrix<Scalar> before = y.view().map();
  kernels::add_project_up(v.input(), f.input(), mask.view(), y.view(), workspace, isa);
  Oracle up(c.rows, c.cols);
  up.add_array(constant(before));
  up.add_product(mask_scale, v.input(), f.input());
  for (Index i = 0; i < c.rows; ++i) {
    for (Index j = 0; j < c.cols; ++j) {
      if (mask.view().keeps(i, j)) continue;
      ASSERT_EQ(y.view()(i, j), before(i, j)) << "a dropped element changed: " << c.text(isa, masked);
    }
  }
  up.expect_near(y.view(), "add_project_up " + c.text(isa, masked),
                 [&](Index i, Index j) { return mask.view().keeps(i, j); });

  const ExactArray<Scalar> g(c.rank, c.cols, Storage::row_major, 6);
  Oracle outer(c.rank, c.cols);
  outer.add_array(g.input());
  kernels::add_outer(v.input(), x.input(), mask.view(), scale, g.view(), workspace, isa);
  outer.add_product(static_cast<double>(scale) * mask_scale, v.input().transpose(), constant(kept));
  outer.expect_near(g.view(), "add_outer " + c.text(isa, masked));
}

template <class Scalar>
class LowRankTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LowRankTest, Scalars);

TYPED_TEST(LowRankTest, MatchesTheOracleOverTailsRanksAndMasks) {
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    for (const bool masked : {false, true}) {
      for (const Index cols : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 47, 48, 49, 64, 97, 150}) {
        for (const Index rank : {1, 2, 3, 4, 7, 8, 9, 13, 16}) {
          expect_products<TypeParam>({7, cols, rank}, isa, masked, workspace);
        }
      }
    }
  }
}

TYPED_TEST(LowRankTest, MatchesTheOracleForEveryBatchSize) {
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    for (Index rows = 0; rows <= 34; ++rows) expect_products<TypeParam>({rows, 83, 5}, isa, true, workspace);
  }
}

TYPED_TEST(LowRankTest, MatchesTheOracleBeyondEveryBlockSize) {
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    expect_products<TypeParam>({19, 70, 64}, isa, false, workspace);
    expect_products<TypeParam>({19, 70, 131}, isa, true, workspace);
    expect_products<TypeParam>({600, 70, 13}, isa, true, workspace);
  }
}

TYPED_TEST(LowRankTest, MatchesTheOracleWithoutRankOrColumns) {
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    expect_products<TypeParam>({5, 20, 0}, isa, true, workspace);
    expect_products<TypeParam>({5, 0, 3}, isa, false, workspace);
  }
}

TYPED_TEST(LowRankTest, InputsMayHaveAnyStrides) {
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    for (const Storage storage : {Storage::column_major, Storage::strided}) {
      for (const bool masked : {false, true}) expect_products<TypeParam>({21, 61, 9, storage}, isa, masked, workspace);
    }
  }
}

// However X lies in memory, U and G have the bits that its row-major copy gives.
TYPED_TEST(LowRankTest, EveryLayoutOfAnInputGivesTheSameBits) {
  for (const Isa isa : supported_isas()) {
    for (const bool masked : {false, true}) {
      for (const int workers : {1, 3}) {
        for (const Case c : {Case{1, 50, 3}, Case{7, 5, 2}, Case{16, 48, 8}, Case{33, 97, 5}, Case{21, 600, 4},
                             Case{520, 131, 9}, Case{0, 20, 3}}) {
          for (const Storage storage : {Storage::column_major, Storage::strided}) {
            ThreadExecutor executor(workers);
            Workspace workspace(executor);
            const ExactArray<TypeParam> x(c.rows, c.cols, storage, 1);
            const Matrix<TypeParam> same = x.view().map();
            const ExactArray<TypeParam> f(c.rank, c.cols, Storage::row_major, 2);
            const ExactArray<TypeParam> v(c.rows, c.rank, storage, 3);
            const Mask<TypeParam> mask(c.rows, c.cols, masked);
            const auto run = [&](const MatrixView<const TypeParam>& input) {
              Matrix<TypeParam> u = Matrix<TypeParam>::Zero(c.rows, c.rank);
              Matrix<TypeParam> g = Matrix<TypeParam>::Ones(c.rank, c.cols);
              kernels::project_down(input, mask.view(), f.input(), TypeParam(0.5), view_of(u), workspace, isa);
              kernels::add_outer(v.input(), input, mask.view(), TypeParam(0.5), view_of(g), workspace, isa);
              return std::pair(u, g);
            };
            const auto expected = run(view_of(same));
            const auto got = run(x.input());
            ASSERT_TRUE(testing::same_bits(got.first, expected.first)) << "U " << c.text(isa, masked);
            ASSERT_TRUE(testing::same_bits(got.second, expected.second)) << "G " << c.text(isa, masked);
          }
        }
      }
    }
  }
}

TYPED_TEST(LowRankTest, ResultsDoNotDependOnTheNumberOfWorkers) {
  const Case c{101, 300, 11};
  const ExactArray<TypeParam> x(c.rows, c.cols, c.storage, 1);
  const ExactArray<TypeParam> f(c.rank, c.cols, Storage::row_major, 2);
  const ExactArray<TypeParam> v(c.rows, c.rank, c.storage, 3);
  const Mask<TypeParam> mask(c.rows, c.cols, true);
  for (const Isa isa : supported_isas()) {
    const auto run = [&](Executor& executor) {
      Workspace workspace(executor);
      Matrix<TypeParam> u = Matrix<TypeParam>::Zero(c.rows, c.rank);
      Matrix<TypeParam> y = Matrix<TypeParam>::Ones(c.rows, c.cols);
      Matrix<TypeParam> g = Matrix<TypeParam>::Ones(c.rank, c.cols);
      kernels::project_down(x.input(), mask.view(), f.input(), TypeParam(0.5), view_of(u), workspace, isa);
      kernels::add_project_up(v.input(), f.input(), mask.view(), view_of(y), workspace, isa);
      kernels::add_outer(v.input(), x.input(), mask.view(), TypeParam(0.5), view_of(g), workspace, isa);
      Matrix<TypeParam> all(c.rows + c.rank, c.cols + c.rank);
      all << y, u, g, Matrix<TypeParam>::Zero(c.rank, c.rank);
      return all;
    };
    SerialExecutor serial;
    const Matrix<TypeParam> expected = run(serial);
    for (const int workers : {2, 3, 7}) {
      ThreadExecutor executor(workers);
      EXPECT_EQ(run(executor), expected) << isa_name(isa) << " with " << workers << " workers";
    }
  }
}

}  // namespace
}  // namespace lora
