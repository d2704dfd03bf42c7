#include "lora/kernels/dense_product.hpp"

#include <gtest/gtest.h>
#include <string>

#include "support/kernel_oracle.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::ExactArray;
using testing::Oracle;
using testing::Storage;
using testing::supported_isas;
using testing::ThreadExecutor;

template <class Scalar>
void expect_products(Index rows, Index outputs, Index inputs, Index rank, Storage storage, Isa isa,
                     Workspace& workspace) {
  const std::string text = std::string(isa_name(isa)) + " N " + std::to_string(rows) + " d " + std::to_string(outputs) +
                           " k " + std::to_string(inputs) + " r " + std::to_string(rank);
  const ExactArray<Scalar> weight(outputs, inputs, storage, 1);
  const ExactArray<Scalar> x(rows, inputs, Storage::row_major, 2);
  const ExactArray<Scalar> bias(1, outputs, Storage::row_major, 3);
  const ExactArray<Scalar> down(rows, rank, Storage::row_major, 4);
  const ExactArray<Scalar> up(rank, outputs, Storage::row_major, 5);
  const ExactArray<Scalar> y(rows, outputs, Storage::row_major, 6);
  kernels::dense_product(weight.input(), x.input(), bias.input().data, down.input(), up.input(), y.view(), workspace,
                         isa);
  Oracle forward(rows, outputs);
  forward.add_row(bias.input().data);
  forward.add_product(1, x.input(), weight.input().transpose());
  forward.add_product(1, down.input(), up.input());
  forward.expect_near(y.view(), "dense_product " + text);

  const ExactArray<Scalar> dy(rows, outputs, Storage::row_major, 7);
  const ExactArray<Scalar> transposed_up(rank, inputs, Storage::row_major, 8);
  const ExactArray<Scalar> dx(rows, inputs, Storage::row_major, 9);
  kernels::dense_product_transposed(weight.input(), dy.input(), down.input(), transposed_up.input(), dx.view(),
                                    workspace, isa);
  Oracle backward(rows, inputs);
  backward.add_product(1, dy.input(), weight.input());
  backward.add_product(1, down.input(), transposed_up.input());
  backward.expect_near(dx.view(), "dense_product_transposed " + text);
}

template <class Scalar>
class DenseProductTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(DenseProductTest, Scalars);

TYPED_TEST(DenseProductTest, MatchesTheOracleForEveryStorageAndTail) {
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    for (const Storage storage : {Storage::row_major, Storage::column_major, Storage::strided}) {
      for (const Index size : {1, 7, 16, 17, 47, 48, 49, 97}) {
        expect_products<TypeParam>(9, size, 50, 3, storage, isa, workspace);
        expect_products<TypeParam>(9, 50, size, 3, storage, isa, workspace);
      }
      for (const Index rows : {0, 1, 2, 13}) expect_products<TypeParam>(rows, 33, 20, 0, storage, isa, workspace);
    }
    expect_products<TypeParam>(5, 70, 2100, 4, Storage::row_major, isa, workspace);
    expect_products<TypeParam>(1100, 20, 30, 4, Storage::row_major, isa, workspace);
  }
}

TYPED_TEST(DenseProductTest, MatchesTheOracleOnManyWorkers) {
  for (const Isa isa : supported_isas()) {
    for (const int workers : {2, 5}) {
      ThreadExecutor executor(workers);
      Workspace workspace(executor);
      expect_products<TypeParam>(40, 500, 490, 3, Storage::row_major, isa, workspace);
      expect_products<TypeParam>(40, 50, 49, 3, Storage::row_major, isa, workspace);
    }
  }
}

}  // namespace
}  // namespace lora
