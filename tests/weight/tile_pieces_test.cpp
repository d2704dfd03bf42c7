#include "lora/weight/tile_pieces.hpp"

#include <gtest/gtest.h>
#include <utility>

#include "lora/weight/dense.hpp"
#include "lora/weight/packed.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

template <class Weight>
void expect_every_element_once(const Weight& weight) {
  Matrix<float> visits = Matrix<float>::Zero(weight.out_features(), weight.in_features());
  Matrix<float> whole(weight.out_features(), weight.in_features());
  read_back(weight, view_of(whole));
  for_each_piece(weight, [&](const WeightTile<const float>& piece) {
    EXPECT_GT(piece.lines * piece.length, 0);
    EXPECT_LE(piece.lines * piece.length, max_piece_size);
    for (Index l = 0; l < piece.lines; ++l) {
      for (Index p = 0; p < piece.length; ++p) {
        const Index line = piece.first_line + l;
        const Index position = piece.first_position + p;
        const Index i = piece.lines_are_outputs ? line : position;
        const Index j = piece.lines_are_outputs ? position : line;
        visits(i, j) += 1;
        EXPECT_EQ(piece.data[l * piece.line_stride + p], whole(i, j));
      }
    }
    return true;
  });
  EXPECT_TRUE((visits.array() == 1).all());
}

TEST(TilePieces, HoldEveryElementOnce) {
  for (const auto& [rows, cols] :
       {std::pair<Index, Index>{1, 1}, {70, 90}, {3, 5000}, {400, 7}, {2, 20000}, {49, 400}}) {
    Matrix<float> w = testing::random_matrix<float>(rows, cols, 1);
    Eigen::MatrixXf columns = w;
    expect_every_element_once(PackedWeight<float>{view_of(w)});
    expect_every_element_once(DenseWeight<float>{view_of(w)});
    expect_every_element_once(DenseWeight<float>{view_of(columns)});
  }
}

TEST(TilePieces, EndWhereTheBodySaysSo) {
  Matrix<float> w = testing::random_matrix<float>(100, 100, 1);
  const DenseWeight<float> weight{view_of(w)};
  int pieces = 0;
  for_each_piece(weight, [&](const WeightTile<const float>&) { return ++pieces < 2; });
  EXPECT_EQ(pieces, 2);
}

}  // namespace
}  // namespace lora
