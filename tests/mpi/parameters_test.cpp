// SPDX-License-Identifier: MIT
// Ranks begin with the same values, or find out that they are not alike.
#include "lora/mpi/parameters.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/layers/linear.hpp"
#include "mpi/ranks.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing::parameters_test {
namespace {

template <class Scalar>
class BroadcastValues : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(BroadcastValues, Scalars);

template <class Scalar>
Trainable<Scalar> tensor_of_rank(int rank) {
  return {.value = random_matrix<Scalar>(3, 5, static_cast<std::uint64_t>(rank)),
          .gradient = Matrix<Scalar>::Constant(3, 5, static_cast<Scalar>(rank)),
          .moments = {.owner = "AdamW", .steps = rank + 1, .first = {1}, .second = {2}}};
}

TYPED_TEST(BroadcastValues, EveryRankHasThoseOfTheRoot) {
  for (int root = 0; root < world().size(); ++root) {
    auto first = tensor_of_rank<TypeParam>(world().rank());
    auto second = tensor_of_rank<TypeParam>(world().rank() + 100);
    const std::vector<Parameter<TypeParam>> parameters = {first.parameter("first", ParameterRole::lora_A),
                                                          second.parameter("second", ParameterRole::lora_B)};
    mpi::broadcast_values(world(), parameters, root);
    EXPECT_TRUE(same_bits(first.value, tensor_of_rank<TypeParam>(root).value));
    EXPECT_TRUE(same_bits(second.value, tensor_of_rank<TypeParam>(root + 100).value));
  }
}

TYPED_TEST(BroadcastValues, GradientsAndOptimizerStatesStay) {
  auto tensor = tensor_of_rank<TypeParam>(world().rank());
  mpi::broadcast_values(world(), std::vector{tensor.parameter("only", ParameterRole::weight)});
  EXPECT_TRUE((tensor.gradient.array() == static_cast<TypeParam>(world().rank())).all());
  EXPECT_EQ(tensor.moments.steps, world().rank() + 1);
}

TYPED_TEST(BroadcastValues, NothingIsBroadcastBetweenDifferentModels) {
  if (world().size() == 1) GTEST_SKIP() << "one rank differs from nobody";
  auto tensor = tensor_of_rank<TypeParam>(world().rank());
  const auto name = world().rank() == 0 ? "layers.0" : "layers.1";
  const std::vector<Parameter<TypeParam>> parameters = {tensor.parameter(name, ParameterRole::weight)};
  EXPECT_THROW(mpi::broadcast_values(world(), parameters), ConfigError);
  EXPECT_TRUE(same_bits(tensor.value, tensor_of_rank<TypeParam>(world().rank()).value));
}

TYPED_TEST(BroadcastValues, AMergedLayerRefuses) {
  LoraLinear<TypeParam> layer(random_matrix<TypeParam>(4, 6, 1), {.rank = 2}, 1);
  layer.eval();
  EXPECT_THROW(mpi::broadcast_values(world(), layer), StateError);
}

TEST(LayoutText, NamesShapesAndScalars) {
  LoraLinear<float> layer(random_matrix<float>(4, 6, 1), {.rank = 2}, 1);
  EXPECT_EQ(mpi::layout_text<float>(layer.parameters()), "lora_A.weight 2 x 6 float\nlora_B.weight 4 x 2 float\n");
  LoraLinear<double> other(random_matrix<double>(4, 6, 1), {.rank = 2}, 1);
  EXPECT_EQ(mpi::layout_text<double>(other.parameters()), "lora_A.weight 2 x 6 double\nlora_B.weight 4 x 2 double\n");
  EXPECT_EQ(mpi::layout_text<float>({}), "");
}

}  // namespace
}  // namespace lora::testing::parameters_test
