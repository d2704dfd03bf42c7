// What a layer keeps of its input between a forward and a backward pass.
#include "lora/layers/remembered_input.hpp"

#include <gtest/gtest.h>

#include "support/random_matrix.hpp"

namespace lora {
namespace {

TEST(RememberedInput, KeepsACopyOfTheLastRowsWhateverTheirStrides) {
  RememberedInput<double> remembered;
  const Matrix<double> first = testing::random_matrix<double>(4, 6, 1);
  const Matrix<double> second = testing::random_matrix<double>(3, 2, 2);
  for (const MatrixView<const double> rows : {view_of(first), view_of(second).transpose(), view_of(first)}) {
    remembered.reserve(rows);
    remembered.assign(rows);
    EXPECT_EQ(remembered.view(rows.rows, rows.cols).map(), rows.map());
  }
}

TEST(RememberedInput, ReservingLeavesWhatIsThere) {
  RememberedInput<float> remembered;
  const Matrix<float> small = testing::random_matrix<float>(2, 2, 1);
  const Matrix<float> large = testing::random_matrix<float>(50, 40, 2);
  remembered.reserve(view_of(small));
  remembered.assign(view_of(small));
  remembered.reserve(view_of(large));
  EXPECT_EQ(remembered.view(2, 2).map(), small);
}

}  // namespace
}  // namespace lora
