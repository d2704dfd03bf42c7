// What a layer of several adapters answers: with one it is LoraLinear, with several the dense formula.
#include "lora/layers/multi_linear.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "layers/multi_linear_kinds.hpp"
#include "support/bits.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_config;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using testing::Wide;
using testing::within_rounding;

constexpr Index n = 11, d = 19, k = 23;

template <class Kind>
class MultiLinear : public ::testing::Test {};
TYPED_TEST_SUITE(MultiLinear, testing::LayerKinds, testing::LayerKindNames);

TYPED_TEST(MultiLinear, WithoutAdaptersIsTheFrozenLayer) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(d, k, 1);
  const auto x = random_matrix<Scalar>(n, k, 3);
  const auto dy = random_matrix<Scalar>(n, d, 4);
  for (const bool fan_in_fan_out : {false, true}) {
    const auto bias = random_vector<Scalar>(d, 2);
    testing::MultiLayerUnderTest<TypeParam> made(w, bias, fan_in_fan_out);
    auto plain = TypeParam::make(w, bias, {.rank = 0, .fan_in_fan_out = fan_in_fan_out});
    auto& layer = made.layer();
    EXPECT_TRUE(same_bits(layer.infer(x), plain.layer->infer(x)));
    EXPECT_TRUE(same_bits(layer.forward(x), plain.layer->forward(x)));
    EXPECT_TRUE(same_bits(layer.backward(dy), plain.layer->backward(dy)));
    EXPECT_TRUE(layer.parameters().empty());
    EXPECT_TRUE(layer.adapter_names().empty());
    EXPECT_TRUE(same_bits(layer.weight(), Matrix<Scalar>(made.storage)));
    EXPECT_FALSE(layer.eval().merged());
  }
}

// All passes, the gradients, the weights and the optimiser's view of an adapter that is alone in a layer, against
// LoraLinear. 300 rows are more than one block of the sums over rows.
TYPED_TEST(MultiLinear, WithOneAdapterIsLoraLinearBitForBit) {
  using Scalar = typename TypeParam::Scalar;
  constexpr Index rows = 300;
  const auto w = random_matrix<Scalar>(d, k, 1);
  const auto bias = random_vector<Scalar>(d, 2);
  const auto x = random_matrix<Scalar>(rows, k, 3);
  const auto dy = random_matrix<Scalar>(rows, d, 4);
  for (const bool fan_in_fan_out : {false, true}) {
    for (const double dropout : {0.0, 0.3}) {
      LoraConfig config = random_config(5, dropout);
      config.fan_in_fan_out = fan_in_fan_out;
      config.lora_bias = true;
      config.bias = BiasMode::lora_only;
      config.use_rslora = true;
      testing::MultiLayerUnderTest<TypeParam> made(w, bias, fan_in_fan_out);
      const Matrix<Scalar> given = made.storage;
      auto& layer = made.layer();
      layer.add_adapter("only", config, 7);
      auto single_made = TypeParam::make(w, bias, config, 7);
      auto& single = *single_made.layer;
      const auto lora_bias = random_vector<Scalar>(d, 5);
      layer.set_lora_bias("only", lora_bias);
      single.set_lora_bias(lora_bias);

      EXPECT_TRUE(same_bits(layer.infer(x), single.infer(x)));
      for (int step = 0; step < 2; ++step) {
        EXPECT_TRUE(same_bits(layer.forward(x), single.forward(x)));
        EXPECT_TRUE(same_bits(layer.backward(dy), single.backward(dy)));
      }
      layer.accumulate_gradients(dy);
      single.accumulate_gradients(dy);
      const auto handles = layer.parameters();
      const auto expected = single.parameters();
      ASSERT_EQ(handles.size(), expected.size());
      for (std::size_t p = 0; p < handles.size(); ++p) {
        EXPECT_EQ(handles[p].role(), expected[p].role());
        EXPECT_TRUE(same_bits(handles[p].value(), expected[p].value())) << handles[p].name();
        EXPECT_TRUE(same_bits(handles[p].gradient(), expected[p].gradient())) << handles[p].name();
      }
      EXPECT_EQ(layer.trainable_parameter_count(), single.trainable_parameter_count());
      EXPECT_EQ(layer.parameter_bytes(), single.parameter_bytes());
      EXPECT_TRUE(same_bits(layer.delta_weight("only"), single.delta_weight()));
      layer.eval();
      single.eval();
      EXPECT_TRUE(same_bits(layer.weight(), single.weight()));
      EXPECT_TRUE(same_bits(layer.base_weight(), given));
      EXPECT_TRUE(same_bits(layer.infer(x), single.infer(x)));
      EXPECT_EQ(layer.merge_bytes(), single.merge_bytes());
    }
  }
}

// The dense formula in long double, over the active adapters.
template <class Layer>
Matrix<Wide> dense_answer(const Layer& layer, const Matrix<Wide>& w, const Matrix<Wide>& x, bool magnitudes) {
  const auto wide = [&](const auto& m) { return testing::detail::widened(m, magnitudes); };
  Matrix<Wide> y = wide(x) * wide(w).transpose();
  if (layer.bias().size() > 0) y.rowwise() += RowVector<Wide>(wide(layer.bias()));
  for (const auto& name : layer.active_adapters()) {
    const auto& adapter = layer.adapter(name);
    const Wide s = layer.scaling(name);
    y += (magnitudes ? std::abs(s) : s) * (wide(x) * wide(adapter.A()).transpose() * wide(adapter.B()).transpose());
    if (adapter.lora_bias().size() > 0) {
      y.rowwise() += RowVector<Wide>((magnitudes ? std::abs(s) : s) * wide(adapter.lora_bias()));
    }
  }
  return y;
}

TYPED_TEST(MultiLinear, WithSeveralAdaptersIsTheDenseFormula) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(d, k, 1);
  const auto x = random_matrix<Scalar>(n, k, 3);
  testing::MultiLayerUnderTest<TypeParam> made(w, random_vector<Scalar>(d, 2));
  auto& layer = made.layer();
  LoraConfig with_bias = random_config(3);
  with_bias.lora_bias = true;
  layer.add_adapter("a", with_bias, 1);
  layer.add_adapter("b", random_config(8), 2);
  layer.add_adapter("c", with_bias, 3);
  layer.add_adapter("idle", random_config(4), 4);
  layer.set_lora_bias("a", random_vector<Scalar>(d, 8));
  layer.set_lora_bias("c", random_vector<Scalar>(d, 9));
  layer.set_scale("b", -0.75);
  layer.set_adapters({"c", "a", "b"});
  // A chain of k + R products; each s and each U with its own roundings.
  const Index terms = 2 * k + 2 * 14 + 16;
  const auto expect_formula = [&](const char* when) {
    EXPECT_TRUE(within_rounding(layer.infer(x),
                                dense_answer(layer, w.template cast<Wide>(), x.template cast<Wide>(), false),
                                dense_answer(layer, w.template cast<Wide>(), x.template cast<Wide>(), true), terms))
        << when;
  };
  expect_formula("unmerged");
  EXPECT_TRUE(same_bits(layer.forward(x), layer.infer(x)));
  layer.merge({"a"});
  expect_formula("an inner one merged");
  layer.merge({"b"});
  expect_formula("two merged, one added");
  layer.merge();
  expect_formula("all merged");
}

TYPED_TEST(MultiLinear, MergedButInactiveAdaptersTakePart) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(d, k, 1);
  const auto x = random_matrix<Scalar>(n, k, 3);
  testing::MultiLayerUnderTest<TypeParam> made(w, {});
  auto& layer = made.layer();
  LoraConfig with_bias = random_config(3);
  with_bias.lora_bias = true;
  layer.add_adapter("active", random_config(3), 1);
  layer.add_adapter("other", with_bias, 2);
  layer.set_lora_bias("other", random_vector<Scalar>(d, 8));
  layer.merge({"other"});
  const Matrix<Scalar> got = layer.infer(x);
  layer.unmerge().set_adapters({"active", "other"});
  EXPECT_TRUE(within_rounding(got, dense_answer(layer, w.template cast<Wide>(), x.template cast<Wide>(), false),
                              dense_answer(layer, w.template cast<Wide>(), x.template cast<Wide>(), true),
                              2 * k + 2 * 6 + 16));
}

TYPED_TEST(MultiLinear, AcceptsVectorsBlocksAndOtherStorageOrders) {
  using Scalar = typename TypeParam::Scalar;
  testing::MultiLayerUnderTest<TypeParam> made(random_matrix<Scalar>(d, k, 1), random_vector<Scalar>(d, 2));
  auto& layer = made.layer();
  layer.add_adapter("a", random_config(3), 1);
  layer.add_adapter("b", random_config(2), 2);
  layer.set_adapters({"a", "b"});
  const auto x = random_matrix<Scalar>(n, k, 3);
  const Matrix<Scalar> expected = layer.infer(x);
  const Eigen::Matrix<Scalar, Eigen::Dynamic, 1> column = x.row(2).transpose();
  EXPECT_TRUE(same_bits(RowVector<Scalar>(layer.infer(column).transpose()), RowVector<Scalar>(expected.row(2))));
  EXPECT_TRUE(same_bits(layer.infer(x.middleRows(3, 4)), Matrix<Scalar>(expected.middleRows(3, 4))));
  Workspace workspace;
  Matrix<Scalar> wide = Matrix<Scalar>::Zero(n, 2 * d);
  layer.infer(x, wide.leftCols(d), workspace);
  EXPECT_TRUE(same_bits(Matrix<Scalar>(wide.leftCols(d)), expected));
  EXPECT_TRUE(wide.rightCols(d).isZero(0));
  const testing::ColumnMajor<Scalar> columns = x;  // read by another path, which may round differently
  EXPECT_LT((layer.infer(columns) - expected).norm(), k * std::numeric_limits<Scalar>::epsilon() * expected.norm());
  EXPECT_EQ(layer.infer(Matrix<Scalar>(0, k)).rows(), 0);
}

TYPED_TEST(MultiLinear, ParametersAreThoseOfTheActiveAdaptersUnderPeftsNames) {
  using Scalar = typename TypeParam::Scalar;
  testing::MultiLayerUnderTest<TypeParam> made(random_matrix<Scalar>(d, k, 1), random_vector<Scalar>(d, 2));
  auto& layer = made.layer();
  LoraConfig with_bias = random_config(3);
  with_bias.lora_bias = true;
  with_bias.bias = BiasMode::all;
  layer.add_adapter("a", with_bias, 1);
  layer.add_adapter("b", random_config(2), 2);
  const auto names = [&] {
    std::vector<std::string> list;
    for (const auto& parameter : layer.parameters()) list.push_back(parameter.name());
    return list;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(), (Names{"lora_A.a.weight", "lora_B.a.weight", "lora_B.a.bias", "bias"}));
  EXPECT_EQ(layer.trainable_parameter_count(), 3 * (k + d) + d + d);
  layer.set_adapter("b");
  EXPECT_EQ(names(), (Names{"lora_A.b.weight", "lora_B.b.weight"}));
  EXPECT_EQ(layer.trainable_parameter_count(), 2 * (k + d));
  layer.set_adapters({"b", "a"});
  EXPECT_EQ(names(), (Names{"lora_A.b.weight", "lora_B.b.weight", "lora_A.a.weight", "lora_B.a.weight", "lora_B.a.bias",
                            "bias"}));
  layer.disable_adapters();
  EXPECT_EQ(names(), Names{});
  EXPECT_EQ(layer.trainable_parameter_count(), 0);
  layer.enable_adapters().set_adapters({});
  EXPECT_EQ(names(), Names{});
}

TYPED_TEST(MultiLinear, EachAdapterHasItsOwnGradients) {
  using Scalar = typename TypeParam::Scalar;
  testing::MultiLayerUnderTest<TypeParam> made(random_matrix<Scalar>(d, k, 1), {});
  auto& layer = made.layer();
  for (const char* name : {"a", "b", "c"}) layer.add_adapter(name, random_config(2), 1);
  layer.set_adapters({"c", "a"});
  const auto x = random_matrix<Scalar>(n, k, 3);
  const auto dy = random_matrix<Scalar>(n, d, 4);
  (void)layer.forward(x);
  layer.accumulate_gradients(dy);
  EXPECT_GT(layer.gradients("a").A.norm(), 0);
  EXPECT_TRUE(layer.gradients("b").A.isZero(0));
  // Equal factors, equal gradients: a and c started from the same seed.
  EXPECT_TRUE(same_bits(layer.gradients("a").A, layer.gradients("c").A));
  EXPECT_TRUE(same_bits(layer.gradients("a").B, layer.gradients("c").B));
  layer.zero_grad();
  EXPECT_TRUE(layer.gradients("a").B.isZero(0));
}

}  // namespace
}  // namespace lora
