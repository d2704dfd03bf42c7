// What every kind of frozen weight must do, written once.
#include "lora/weight/frozen_weight.hpp"

#include <gtest/gtest.h>
#include <vector>

#include "lora/weight/dense.hpp"
#include "lora/weight/packed.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

static_assert(FrozenWeight<DenseWeight<float>>);
static_assert(FrozenWeight<DenseWeight<double>>);
static_assert(FrozenWeight<PackedWeight<float>>);
static_assert(FrozenWeight<PackedWeight<double>>);
static_assert(!FrozenWeight<Matrix<float>>);

template <class Weight>
class FrozenWeightLaws : public ::testing::Test {};

using Kinds = ::testing::Types<PackedWeight<float>, PackedWeight<double>, DenseWeight<float>, DenseWeight<double>>;
TYPED_TEST_SUITE(FrozenWeightLaws, Kinds);

struct Extents {
  Index d, k;
};
const std::vector<Extents> extents = {{1, 1},   {1, 40},   {40, 1},   {5, 7},     {47, 3},
                                      {48, 48}, {49, 130}, {200, 97}, {20000, 2}, {2, 20000}};

TYPED_TEST(FrozenWeightLaws, TilesVisitEveryElementOnceAndReadBackGivesTheWeight) {
  using Scalar = typename TypeParam::Scalar;
  for (const auto& [d, k] : extents) {
    for (const bool transposed : {false, true}) {
      Matrix<Scalar> stored = transposed ? random_matrix<Scalar>(k, d, 1) : random_matrix<Scalar>(d, k, 1);
      const auto view = transposed ? view_of(stored).transpose() : view_of(stored);
      const TypeParam weight{MatrixView<const Scalar>(view)};
      ASSERT_EQ(weight.out_features(), d);
      ASSERT_EQ(weight.in_features(), k);
      Matrix<int> visits = Matrix<int>::Zero(d, k);
      for (Index t = 0; t < weight.tile_count(); ++t) {
        const auto tile = weight.tile(t);
        EXPECT_LE(tile.lines * tile.length, max_tile_size);
        for (Index l = 0; l < tile.lines; ++l) {
          for (Index p = 0; p < tile.length; ++p) {
            const Index line = tile.first_line + l;
            const Index position = tile.first_position + p;
            ++(tile.lines_are_outputs ? visits(line, position) : visits(position, line));
          }
        }
      }
      EXPECT_TRUE((visits.array() == 1).all()) << d << " x " << k;
      Matrix<Scalar> back = Matrix<Scalar>::Zero(d, k);
      read_back(weight, view_of(back));
      EXPECT_TRUE(same_bits(back, transposed ? Matrix<Scalar>(stored.transpose()) : stored));
    }
  }
}

}  // namespace
}  // namespace lora
