// SPDX-License-Identifier: MIT
#include "lora/kernels/transpose.hpp"

#include <gtest/gtest.h>
#include <memory>
#include <vector>

#include "support/kernel_oracle.hpp"

namespace lora {
namespace {

using testing::ExactArray;
using testing::Storage;
using testing::supported_isas;

template <class Scalar>
class TransposeTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(TransposeTest, Scalars);

TYPED_TEST(TransposeTest, PacksEveryShapeAndStorageWithZerosBesideIt) {
  for (const Isa isa : supported_isas()) {
    for (const Storage storage : {Storage::row_major, Storage::column_major, Storage::strided}) {
      for (const Index rows : {1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 48}) {
        for (const Index columns : {0, 1, 2, 3, 4, 7, 8, 16, 19, 50}) {
          const ExactArray<TypeParam> source(rows, columns, storage, 1);
          for (const Index width : {rows, rows + 1, Index{64}}) {
            const auto size = static_cast<std::size_t>(columns * width);
            const auto target = std::make_unique<TypeParam[]>(size);
            std::fill(target.get(), target.get() + size, TypeParam(9));
            kernels::pack_transposed(isa, source.input(), width, target.get());
            for (Index j = 0; j < columns; ++j) {
              for (Index i = 0; i < width; ++i) {
                ASSERT_EQ(target[static_cast<std::size_t>(j * width + i)], i < rows ? source.input()(i, j) : 0)
                    << isa_name(isa) << " " << rows << " x " << columns << " to width " << width;
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace lora
