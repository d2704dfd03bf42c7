// A layer behind the interface of a model.
#include "lora/model/model_layer.hpp"

#include <gtest/gtest.h>
#include <string>

#include "lora/model/model_layers.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;

class ModelLayerTest : public ::testing::Test {
 protected:
  LoraLinear<double> layer{random_matrix<double>(4, 6, 1), RowVector<double>(random_matrix<double>(1, 4, 2)),
                           LoraConfig{.rank = 2, .alpha = 6}, 1};
  HeldLayer<LoraLinear<double>> held{layer};
};

TEST_F(ModelLayerTest, CountsTheFrozenAndTheLearnedScalars) {
  EXPECT_EQ(held.base_size(), 4 * 6 + 4);
  EXPECT_EQ(held.adapter_size(), 2 * 6 + 4 * 2);
  EXPECT_EQ(held.bias(), layer.bias());
  EXPECT_EQ(held.kind(), ModuleKind::linear);
}

TEST_F(ModelLayerTest, WorksOnTheLayerItself) {
  held.eval();
  EXPECT_TRUE(layer.merged());
  held.unmerge();
  EXPECT_FALSE(held.merged());
  held.reset_adapter({.rank = 3}, 1);
  EXPECT_EQ(layer.rank(), 3);
}

TEST_F(ModelLayerTest, LoadsWhatStateGave) {
  auto weights = held.weights();
  EXPECT_EQ(weights.scaling, 3);
  weights.B = random_matrix<double>(4, 2, 5);
  EXPECT_EQ(held.misfit(layer.config(), weights), "");
  held.load(weights);
  EXPECT_EQ(layer.lora_B(), weights.B);
}

TEST_F(ModelLayerTest, SaysEverythingThatDoesNotFit) {
  auto weights = held.weights();
  weights.A.resize(3, 6);
  weights.magnitude.resize(4);
  EXPECT_EQ(held.misfit(layer.config(), weights), " A is 3 x 6 for 2 x 6 magnitude is 1 x 4 for 1 x 0");
  weights.kind = ModuleKind::embedding;
  EXPECT_EQ(held.misfit(layer.config(), weights), "it is a module of another kind");
}

}  // namespace
}  // namespace lora
