// SPDX-License-Identifier: MIT
#include "lora/weight/packed.hpp"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "support/kernel_oracle.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace packed_test {
namespace {

using testing::ExactArray;
using testing::Oracle;
using testing::Storage;
using testing::supported_isas;
using testing::ThreadExecutor;

static_assert(FrozenWeight<PackedWeight<float>>);
static_assert(FrozenWeight<PackedWeight<double>>);

struct Case {
  Index rows;
  Index outputs;
  Index inputs;
  Index rank;
  Storage weight = Storage::row_major;
  Storage input = Storage::row_major;
  bool bias = true;

  [[nodiscard]] std::string text(Isa isa) const {
    return std::string(isa_name(isa)) + " N " + std::to_string(rows) + " d " + std::to_string(outputs) + " k " +
           std::to_string(inputs) + " r " + std::to_string(rank) + " weight storage " +
           std::to_string(static_cast<int>(weight)) + " input storage " + std::to_string(static_cast<int>(input));
  }
};

template <class Scalar>
struct Arrays {
  explicit Arrays(const Case& c)
      : weight(c.outputs, c.inputs, c.weight, 1),
        x(c.rows, c.inputs, c.input, 2),
        bias(1, c.outputs, Storage::row_major, 3),
        down(c.rows, c.rank, c.input, 4),
        forward_up(c.rank, c.outputs, Storage::row_major, 5),
        dy(c.rows, c.outputs, c.input, 6),
        backward_up(c.rank, c.inputs, Storage::row_major, 7),
        y(c.rows, c.outputs, Storage::row_major, 8),
        dx(c.rows, c.inputs, Storage::row_major, 9),
        bias_or_null(c.bias ? bias.input().data : nullptr) {}

  void product(const PackedWeight<Scalar>& packed, Workspace& workspace) const {
    packed.product(x.input(), bias_or_null, {down.input(), forward_up.input()}, y.view(), workspace);
  }
  void product_transposed(const PackedWeight<Scalar>& packed, Workspace& workspace) const {
    packed.product_transposed(dy.input(), {down.input(), backward_up.input()}, dx.view(), workspace);
  }

  ExactArray<Scalar> weight, x, bias, down, forward_up, dy, backward_up, y, dx;
  const Scalar* bias_or_null;
};

template <class Scalar>
void expect_products(const Case& c, Isa isa) {
  const Arrays<Scalar> a(c);
  const PackedWeight<Scalar> packed(a.weight.input(), isa);
  Workspace workspace;
  a.product(packed, workspace);
  Oracle forward(c.rows, c.outputs);
  if (c.bias) forward.add_row(a.bias_or_null);
  forward.add_product(1, a.x.input(), a.weight.input().transpose());
  forward.add_product(1, a.down.input(), a.forward_up.input());
  forward.expect_near(a.y.view(), "product " + c.text(isa));

  a.product_transposed(packed, workspace);
  Oracle backward(c.rows, c.inputs);
  backward.add_product(1, a.dy.input(), a.weight.input());
  backward.add_product(1, a.down.input(), a.backward_up.input());
  backward.expect_near(a.dx.view(), "product_transposed " + c.text(isa));
}

template <class Scalar>
class PackedWeightTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(PackedWeightTest, Scalars);

const std::vector<Index> tail_sizes = {1, 2, 7, 15, 16, 17, 23, 24, 25, 47, 48, 49, 64, 97};

TYPED_TEST(PackedWeightTest, ProductsMatchTheOracleForEveryTailOfTheWeight) {
  for (const Isa isa : supported_isas()) {
    for (const Index outputs : tail_sizes) {
      for (const Index inputs : tail_sizes) expect_products<TypeParam>({9, outputs, inputs, 3}, isa);
    }
  }
}

TYPED_TEST(PackedWeightTest, ProductsMatchTheOracleForEveryTailOfTheBatch) {
  for (const Isa isa : supported_isas()) {
    for (Index rows = 0; rows <= 50; ++rows) expect_products<TypeParam>({rows, 65, 33, 2}, isa);
  }
}

TYPED_TEST(PackedWeightTest, ProductsMatchTheOracleBeyondEveryBlockSize) {
  for (const Isa isa : supported_isas()) {
    expect_products<TypeParam>({331, 97, 131, 5}, isa);
    expect_products<TypeParam>({5, 49, 2100, 4}, isa);
    expect_products<TypeParam>({5, 2100, 49, 4}, isa);
    expect_products<TypeParam>({50, 481, 257, 100}, isa);
  }
}

TYPED_TEST(PackedWeightTest, ProductsMatchTheOracleWithoutRankOrBias) {
  for (const Isa isa : supported_isas()) {
    for (const Index rows : {0, 1, 8, 13}) {
      expect_products<TypeParam>({rows, 50, 70, 0}, isa);
      expect_products<TypeParam>({rows, 50, 70, 0, Storage::row_major, Storage::row_major, false}, isa);
      expect_products<TypeParam>({rows, 50, 70, 4, Storage::row_major, Storage::row_major, false}, isa);
    }
  }
}

TYPED_TEST(PackedWeightTest, ProductsMatchTheOracleWithoutInputsOrOutputs) {
  for (const Isa isa : supported_isas()) {
    expect_products<TypeParam>({5, 50, 0, 3}, isa);
    expect_products<TypeParam>({5, 0, 50, 3}, isa);
    expect_products<TypeParam>({5, 0, 0, 3}, isa);
  }
}

TYPED_TEST(PackedWeightTest, WeightAndInputsMayHaveAnyStrides) {
  for (const Isa isa : supported_isas()) {
    for (const Storage weight : {Storage::row_major, Storage::column_major, Storage::strided}) {
      for (const Storage input : {Storage::row_major, Storage::column_major, Storage::strided}) {
        expect_products<TypeParam>({21, 61, 43, 3, weight, input}, isa);
      }
    }
  }
}

TYPED_TEST(PackedWeightTest, OutputsMayBeBlocksOfWiderArrays) {
  const Case c{11, 50, 35, 2};
  for (const Isa isa : supported_isas()) {
    const Arrays<TypeParam> a(c);
    const PackedWeight<TypeParam> packed(a.weight.input(), isa);
    Workspace workspace;
    Matrix<TypeParam> wide = Matrix<TypeParam>::Constant(c.rows, 120, TypeParam(7));
    packed.product(a.x.input(), a.bias_or_null, {a.down.input(), a.forward_up.input()},
                   view_of(wide).middle_cols(3, c.outputs), workspace);
    packed.product_transposed(a.dy.input(), {a.down.input(), a.backward_up.input()},
                              view_of(wide).middle_cols(60, c.inputs), workspace);
    a.product(packed, workspace);
    a.product_transposed(packed, workspace);
    EXPECT_EQ(wide.middleCols(3, c.outputs), a.y.view().map());
    EXPECT_EQ(wide.middleCols(60, c.inputs), a.dx.view().map());
    wide.middleCols(3, c.outputs).setConstant(7);
    wide.middleCols(60, c.inputs).setConstant(7);
    EXPECT_EQ(wide, Matrix<TypeParam>::Constant(c.rows, 120, TypeParam(7)));
  }
}

// Both products, as copies.
template <class Scalar>
struct Products {
  Matrix<Scalar> y, dx;
  Products(const Arrays<Scalar>& a, const PackedWeight<Scalar>& packed) {
    Workspace workspace;
    a.product(packed, workspace);
    a.product_transposed(packed, workspace);
    y = a.y.view().map();
    dx = a.dx.view().map();
  }
};

template <class Scalar>
void expect_same_bits(const MatrixView<Scalar>& a, const Matrix<Scalar>& b) {
  for (Index i = 0; i < b.rows(); ++i) {
    ASSERT_EQ(std::memcmp(&a(i, 0), &b(i, 0), static_cast<std::size_t>(b.cols()) * sizeof(Scalar)), 0) << "row " << i;
  }
}

TYPED_TEST(PackedWeightTest, ResultsDoNotDependOnTheNumberOfWorkers) {
  for (const Isa isa : supported_isas()) {
    for (const Case& c : {Case{331, 500, 300, 5}, Case{100, 40, 30, 3}, Case{1, 300, 300, 3}, Case{3, 20, 20, 3}}) {
      const Arrays<TypeParam> a(c);
      const PackedWeight<TypeParam> packed(a.weight.input(), isa);
      const Products<TypeParam> serial(a, packed);
      for (const int workers : {2, 3, 7}) {
        ThreadExecutor executor(workers);
        Workspace workspace(executor);
        a.y.view().map().setZero();
        a.dx.view().map().setZero();
        a.product(packed, workspace);
        a.product_transposed(packed, workspace);
        expect_same_bits(a.y.view(), serial.y);
        expect_same_bits(a.dx.view(), serial.dx);
      }
    }
  }
}

// So NEON, AVX2 and AVX-512 give the same bits. The portable kernels may round each product first.
TYPED_TEST(PackedWeightTest, EveryElementIsOneChainOfFusedMultiplyAdds) {
  for (const Isa isa : supported_isas()) {
    if (isa == Isa::portable) continue;
    for (const Case& c : {Case{1, 101, 1050, 3}, Case{9, 97, 520, 3}}) {
      const Arrays<TypeParam> a(c);
      const PackedWeight<TypeParam> packed(a.weight.input(), isa);
      const Products<TypeParam> products(a, packed);
      const auto chain = [](TypeParam sum, const auto& left, const auto& right) {
        for (Index q = 0; q < left.size(); ++q) sum = std::fma(left(q), right(q), sum);
        return sum;
      };
      for (Index i = 0; i < c.rows; ++i) {
        for (Index j = 0; j < c.outputs; ++j) {
          const TypeParam own = chain(a.bias_or_null[j], a.x.input().map().row(i), a.weight.input().map().row(j));
          const TypeParam expected = chain(own, a.down.input().map().row(i), a.forward_up.input().map().col(j));
          ASSERT_EQ(products.y(i, j), expected) << c.text(isa) << " at " << i << ", " << j;
        }
        for (Index j = 0; j < c.inputs; ++j) {
          const TypeParam own = chain(0, a.dy.input().map().row(i), a.weight.input().map().col(j));
          const TypeParam expected = chain(own, a.down.input().map().row(i), a.backward_up.input().map().col(j));
          ASSERT_EQ(products.dx(i, j), expected) << c.text(isa) << " dX at " << i << ", " << j;
        }
      }
    }
  }
}

TYPED_TEST(PackedWeightTest, ARowDoesNotDependOnItsBatch) {
  const Case c{331, 101, 1050, 5};
  for (const Isa isa : supported_isas()) {
    const Arrays<TypeParam> a(c);
    const PackedWeight<TypeParam> packed(a.weight.input(), isa);
    const Products<TypeParam> whole(a, packed);
    Workspace workspace;
    for (const auto& [first, count] : std::vector<std::pair<Index, Index>>{{0, 1}, {5, 2}, {17, 31}, {300, 31}}) {
      packed.product(a.x.input().middle_rows(first, count), a.bias_or_null,
                     {a.down.input().middle_rows(first, count), a.forward_up.input()}, a.y.view().middle_rows(0, count),
                     workspace);
      packed.product_transposed(a.dy.input().middle_rows(first, count),
                                {a.down.input().middle_rows(first, count), a.backward_up.input()},
                                a.dx.view().middle_rows(0, count), workspace);
      expect_same_bits<TypeParam>(a.y.view(), whole.y.middleRows(first, count));
      expect_same_bits<TypeParam>(a.dx.view(), whole.dx.middleRows(first, count));
    }
  }
}

TYPED_TEST(PackedWeightTest, TilesHoldEveryElementOnceWithoutPadding) {
  for (const auto& [outputs, inputs] : std::vector<std::pair<Index, Index>>{{1, 1}, {50, 700}, {97, 1500}, {48, 341}}) {
    const ExactArray<TypeParam> weight(outputs, inputs, Storage::row_major, 1);
    PackedWeight<TypeParam> packed(weight.input());
    Matrix<int> seen = Matrix<int>::Zero(outputs, inputs);
    for (Index t = 0; t < packed.tile_count(); ++t) {
      const auto tile = packed.tile(t);
      ASSERT_LE(tile.lines * tile.length, max_tile_size);
      ASSERT_FALSE(tile.lines_are_outputs);
      for (Index l = 0; l < tile.lines; ++l) {
        for (Index p = 0; p < tile.length; ++p) {
          const Index output = tile.first_position + p;
          const Index input = tile.first_line + l;
          ++seen(output, input);
          ASSERT_EQ(tile.data[l * tile.line_stride + p], weight.input()(output, input));
        }
      }
    }
    EXPECT_EQ(seen, Matrix<int>::Ones(outputs, inputs));
  }
}

TYPED_TEST(PackedWeightTest, WritingThroughTilesChangesTheProducts) {
  const Case c{5, 50, 35, 0, Storage::row_major, Storage::row_major, false};
  const Arrays<TypeParam> a(c);
  PackedWeight<TypeParam> packed(a.weight.input());
  for (Index t = 0; t < packed.tile_count(); ++t) {
    const auto tile = packed.tile(t);
    for (Index l = 0; l < tile.lines; ++l) {
      for (Index p = 0; p < tile.length; ++p) tile.data[l * tile.line_stride + p] *= TypeParam(2);
    }
  }
  Matrix<TypeParam> doubled(c.outputs, c.inputs);
  read_back(packed, view_of(doubled));
  EXPECT_EQ(doubled, TypeParam(2) * a.weight.view().map());
  Workspace workspace;
  a.product(packed, workspace);
  const Matrix<TypeParam> y = a.y.view().map();
  a.product(PackedWeight<TypeParam>(a.weight.input()), workspace);
  EXPECT_EQ(y, TypeParam(2) * a.y.view().map());
}

TYPED_TEST(PackedWeightTest, CopiesAreIndependentAndMovesLeaveAnEmptyWeight) {
  const ExactArray<TypeParam> weight(50, 35, Storage::row_major, 1);
  const Matrix<TypeParam> original = weight.view().map();
  PackedWeight<TypeParam> first(weight.input());
  PackedWeight<TypeParam> copy(first);
  first.tile(0).data[0] += TypeParam(1);
  Matrix<TypeParam> back(50, 35);
  read_back(copy, view_of(back));
  EXPECT_EQ(back, original);

  const PackedWeight<TypeParam> moved(std::move(copy));
  EXPECT_EQ(copy.out_features(), 0);  // NOLINT(bugprone-use-after-move): what is left is documented
  EXPECT_EQ(copy.tile_count(), 0);
  EXPECT_EQ(copy.bytes(), 0U);
  read_back(moved, view_of(back));
  EXPECT_EQ(back, original);

  first = moved;
  read_back(first, view_of(back));
  EXPECT_EQ(back, original);
}

TYPED_TEST(PackedWeightTest, OneCopyTakesTheBytesOfTheWeight) {
  const auto bytes = [](Index outputs, Index inputs) {
    const Matrix<TypeParam> weight = Matrix<TypeParam>::Zero(outputs, inputs);
    return PackedWeight<TypeParam>(view_of(weight)).bytes();
  };
  EXPECT_EQ(bytes(4096, 64), 4096U * 64U * sizeof(TypeParam));
  EXPECT_EQ(bytes(768, 64), 768U * 64U * sizeof(TypeParam));
  EXPECT_LT(bytes(1, 64), 64U * sizeof(TypeParam) + 64U * 64U);
}

TYPED_TEST(PackedWeightTest, ASteadyProductAllocatesNothing) {
  const Case c{70, 100, 90, 4};
  const Arrays<TypeParam> a(c);
  const PackedWeight<TypeParam> packed(a.weight.input());
  Workspace workspace;
  a.product(packed, workspace);
  a.product_transposed(packed, workspace);
  const std::size_t bytes = workspace.bytes();
  a.product(packed, workspace);
  a.product_transposed(packed, workspace);
  EXPECT_EQ(workspace.bytes(), bytes);
}

TEST(PackedWeight, RefusesAnInstructionSetTheMachineLacks) {
  const Matrix<float> weight = Matrix<float>::Zero(2, 2);
  for (const Isa isa : all_isas) {
    if (isa_supported(isa)) {
      EXPECT_NO_THROW(PackedWeight<float>(view_of(weight), isa));
    } else {
      EXPECT_THROW(PackedWeight<float>(view_of(weight), isa), ConfigError);
    }
  }
}

}  // namespace
}  // namespace packed_test
}  // namespace lora
