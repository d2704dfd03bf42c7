// A parameter that an adapter may replace whole.
#include "lora/model/model_parameter.hpp"

#include <gtest/gtest.h>
#include <vector>

namespace lora {
namespace {

TEST(ModelParameter, HasTheShapeOfFiles) {
  Trainable<double> row{Matrix<double>::Zero(1, 6), {}, {}};
  Trainable<double> matrix{Matrix<double>::Zero(2, 3), {}, {}};
  EXPECT_EQ(ModelParameter<double>("a", row, {}).shape(), std::vector<Index>{6});
  EXPECT_EQ(ModelParameter<double>("a", matrix, {}).shape(), (std::vector<Index>{2, 3}));
  EXPECT_EQ(ModelParameter<double>("a", matrix, {1, 6, 1}).shape(), (std::vector<Index>{1, 6, 1}));
  EXPECT_THROW(ModelParameter<double>("a", matrix, {7}), ShapeError);
}

TEST(ModelParameter, GivesFormerValuesBackUnlessTheyAreToBeKept) {
  Trainable<double> value{Matrix<double>::Constant(2, 2, 1), {}, {}};
  ModelParameter<double> parameter("a", value, {});
  parameter.restore();
  EXPECT_EQ(value.value(0, 0), 1);
  parameter.replace();
  EXPECT_TRUE(parameter.replaced());
  parameter.set({2, 3, 4, 5});
  EXPECT_EQ(parameter.saved().values, (std::vector<double>{2, 3, 4, 5}));
  parameter.restore();
  EXPECT_EQ(value.value, (Matrix<double>::Constant(2, 2, 1)));
  EXPECT_FALSE(parameter.replaced());
  parameter.replace();
  parameter.set({2, 3, 4, 5});
  parameter.keep();
  parameter.restore();
  EXPECT_EQ(value.value(1, 1), 5);
}

TEST(ModelParameter, HandsOutAHandleWithItsGradient) {
  Trainable<double> value{Matrix<double>::Constant(1, 2, 1), {}, {}};
  ModelParameter<double> parameter("head.bias", value, {});
  auto handle = parameter.handle();
  EXPECT_EQ(handle.name(), "head.bias");
  handle.gradient().setOnes();
  EXPECT_EQ(value.gradient.sum(), 2);
  parameter.zero_grad();
  EXPECT_EQ(value.gradient.sum(), 0);
}

}  // namespace
}  // namespace lora
