// Adapters with DoRA among several: alone one is LoraLinear, together they are additive.
#include "lora/layers/adapter_passes.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "layers/multi_linear_kinds.hpp"
#include "support/bits.hpp"
#include "support/linear_oracle.hpp"

namespace lora {
namespace {

using testing::random_config;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using Names = std::vector<std::string>;

constexpr Index n = 11, d = 19, k = 23;

LoraConfig dora_config(Index rank, double dropout = 0) {
  LoraConfig config = random_config(rank, dropout);
  config.use_dora = true;
  return config;
}

/// Magnitudes other than the norms they start as, between a half and one and a half of them.
template <class Scalar>
RowVector<Scalar> shifted(const RowVector<Scalar>& magnitude, std::uint64_t seed) {
  return magnitude.cwiseProduct((random_vector<Scalar>(d, seed, 0.5).array() + Scalar(1)).matrix());
}

template <class Kind>
class AdaptersWithDora : public ::testing::Test {};
TYPED_TEST_SUITE(AdaptersWithDora, testing::LayerKinds, testing::LayerKindNames);

TYPED_TEST(AdaptersWithDora, OneAloneIsLoraLinearBitForBit) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(d, k, 1);
  const auto bias = random_vector<Scalar>(d, 2);
  const auto x = random_matrix<Scalar>(n, k, 3);
  const auto dy = random_matrix<Scalar>(n, d, 4);
  for (const bool fan_in_fan_out : {false, true}) {
    for (const double dropout : {0.0, 0.3}) {
      LoraConfig config = dora_config(5, dropout);
      config.fan_in_fan_out = fan_in_fan_out;
      testing::MultiLayerUnderTest<TypeParam> made(w, bias, fan_in_fan_out);
      const Matrix<Scalar> given = made.storage;
      auto& layer = made.layer();
      layer.add_adapter("only", config, 7);
      auto single_made = TypeParam::make(w, bias, config, 7);
      auto& single = *single_made.layer;
      EXPECT_TRUE(same_bits(layer.magnitude("only"), single.magnitude()));
      const auto magnitude = shifted(single.magnitude(), 6);
      layer.set_magnitude("only", magnitude);
      single.set_magnitude(magnitude);
      EXPECT_TRUE(same_bits(layer.infer(x), single.infer(x)));
      EXPECT_TRUE(same_bits(layer.forward(x), single.forward(x)));
      EXPECT_TRUE(same_bits(layer.backward(dy), single.backward(dy)));
      const auto handles = layer.parameters();
      const auto expected = single.parameters();
      ASSERT_EQ(handles.size(), expected.size());
      for (std::size_t p = 0; p < handles.size(); ++p) {
        EXPECT_EQ(handles[p].role(), expected[p].role());
        EXPECT_TRUE(same_bits(handles[p].gradient(), expected[p].gradient())) << handles[p].name();
      }
      EXPECT_EQ(handles[2].name(), "lora_magnitude_vector.only.weight");
      EXPECT_EQ(layer.trainable_parameter_count(), single.trainable_parameter_count());
      EXPECT_EQ(layer.parameter_bytes(), single.parameter_bytes());
      layer.merge();
      single.merge();
      EXPECT_TRUE(same_bits(layer.weight(), single.weight()));
      EXPECT_TRUE(same_bits(layer.infer(x), single.infer(x)));
      EXPECT_TRUE(same_bits(layer.base_weight(), given));
      EXPECT_TRUE(same_bits(layer.unmerge().weight(), given));
    }
  }
}

// Two with DoRA and two without, each with its own dropout.
template <class Layer>
void add_four(Layer& layer, double dropout) {
  layer.add_adapter("plain", random_config(3, dropout), 1);
  layer.add_adapter("dora", dora_config(4, dropout), 2);
  layer.add_adapter("plain2", random_config(2), 3);
  layer.add_adapter("dora2", dora_config(5), 4);
  layer.set_scale("dora2", -0.5);
  layer.set_scale("plain", 1.5);
  for (const char* name : {"dora", "dora2"}) layer.set_magnitude(name, shifted(layer.magnitude(name), 9));
}

/// Norms of all products that make up an answer or a gradient, with factors m/n of at most 3: n changes where the scale
/// does after m was set.
template <class Layer>
double size_of_terms(const Layer& layer, double w_norm) {
  double size = w_norm;
  for (const auto& name : layer.active_adapters()) {
    const auto& adapter = layer.adapter(name);
    size += 3 * (w_norm + std::abs(static_cast<double>(layer.scaling(name))) *
                              static_cast<double>(adapter.A().norm() * adapter.B().norm()));
  }
  return size;
}

struct Training {
  template <class Layer, class Scalar>
  static auto run(const Layer& layer, const Matrix<Scalar>& x, const Matrix<Scalar>& dy) {
    struct Result {
      Matrix<Scalar> y{n, d}, dx{n, k};
      MultiLoraGradients<Scalar> gradients;
    } result;
    MultiLoraRecord<Scalar> record;
    record.position = {5, 2};
    Workspace workspace;
    result.gradients = layer.make_gradients();
    layer.forward(x, record, result.y, workspace);
    layer.backward(x, record, dy, result.gradients, result.dx, workspace);
    return result;
  }
};

// Every adapter adds what it adds alone, in inference, in training and in dX; and as dY reaches each of them unchanged,
// its gradients are those of a layer that has it alone, bit for bit.
TYPED_TEST(AdaptersWithDora, SeveralAreAdditive) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(d, k, 1);
  const auto x = random_matrix<Scalar>(n, k, 3);
  const auto dy = random_matrix<Scalar>(n, d, 4);
  for (const Names& together :
       {Names{"dora", "dora2"}, Names{"plain", "dora"}, Names{"dora2", "plain", "dora", "plain2"}}) {
    testing::MultiLayerUnderTest<TypeParam> made(w, random_vector<Scalar>(d, 2));
    auto& layer = made.layer();
    add_four(layer, 0.3);
    layer.set_adapters({});
    const auto base = Training::run(layer, x, dy);
    const Matrix<Scalar> base_answer = layer.infer(x);
    layer.set_adapters(together);
    const auto all = Training::run(layer, x, dy);
    const Matrix<Scalar> all_answer = layer.infer(x);
    // Two chains of at most k + 2R roundings for each of up to six products; dropout scales X by less than 2.
    const double rounding = 6.0 * 2 * (d + k + 2 * 14 + 16) * std::numeric_limits<Scalar>::epsilon() *
                            size_of_terms(layer, static_cast<double>(w.norm()));
    Matrix<Scalar> answer = base_answer;
    Matrix<Scalar> y = base.y;
    Matrix<Scalar> dx = base.dx;
    for (std::size_t i = 0; i < together.size(); ++i) {
      layer.set_adapter(together[i]);
      answer += layer.infer(x) - base_answer;
      const auto alone = Training::run(layer, x, dy);
      y += alone.y - base.y;
      dx += alone.dx - base.dx;
      EXPECT_TRUE(same_bits(all.gradients.adapters[i].A, alone.gradients.adapters[0].A)) << together[i];
      EXPECT_TRUE(same_bits(all.gradients.adapters[i].B, alone.gradients.adapters[0].B)) << together[i];
      EXPECT_TRUE(same_bits(all.gradients.adapters[i].magnitude, alone.gradients.adapters[0].magnitude)) << together[i];
    }
    EXPECT_LE((all_answer - answer).norm(), rounding * x.norm());
    EXPECT_LE((all.y - y).norm(), rounding * x.norm());
    EXPECT_LE((all.dx - dx).norm(), rounding * dy.norm());
    EXPECT_GT((all_answer - base_answer).norm(), 1e-2 * base_answer.norm());
  }
}

// The dense formula, with every norm taken against W0.
TYPED_TEST(AdaptersWithDora, SeveralAreTheDenseFormulaWithNormsOfTheBareWeight) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(d, k, 1);
  const auto x = random_matrix<Scalar>(n, k, 3);
  testing::MultiLayerUnderTest<TypeParam> made(w, {});
  auto& layer = made.layer();
  add_four(layer, 0);
  const Names all = layer.adapter_names();
  layer.set_adapters(all);
  Matrix<double> dense = w.template cast<double>();
  for (const auto& name : all) {
    const auto& adapter = layer.adapter(name);
    const Matrix<double> delta = static_cast<double>(layer.scaling(name)) * adapter.B().template cast<double>() *
                                 adapter.A().template cast<double>();
    if (layer.magnitude(name).size() == 0) {
      dense += delta;
      continue;
    }
    const Matrix<double> directed = w.template cast<double>() + delta;
    for (Index j = 0; j < d; ++j) {
      dense.row(j) += static_cast<double>(layer.magnitude(name)[j]) / directed.row(j).norm() * directed.row(j) -
                      w.row(j).template cast<double>();
    }
  }
  const Matrix<double> expected = x.template cast<double>() * dense.transpose();
  const double rounding = 6.0 * 2 * (k + 2 * 14 + 16) * std::numeric_limits<Scalar>::epsilon() *
                          size_of_terms(layer, static_cast<double>(w.norm()));
  EXPECT_LE((layer.infer(x).template cast<double>() - expected).norm(), rounding * static_cast<double>(x.norm()));
}

TYPED_TEST(AdaptersWithDora, OneIsMergedAlone) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(d, k, 1);
  const auto x = random_matrix<Scalar>(n, k, 3);
  testing::MultiLayerUnderTest<TypeParam> made(w, random_vector<Scalar>(d, 2));
  auto& layer = made.layer();
  add_four(layer, 0);
  const auto refused = [&](const Names& names) {
    const Names before = layer.merged_adapters();
    const Matrix<Scalar> weight = layer.weight();
    try {
      layer.merge(names);
      ADD_FAILURE() << "merged";
    } catch (const StateError& error) {
      EXPECT_NE(std::string(error.what()).find("merged alone, for it has use_dora"), std::string::npos) << error.what();
    }
    EXPECT_EQ(layer.merged_adapters(), before);
    EXPECT_TRUE(same_bits(layer.weight(), weight));
  };
  refused({"plain", "dora"});
  refused({"dora", "dora2"});
  layer.merge({"plain"});
  refused({"dora"});
  layer.unmerge().set_adapters({"dora", "plain"});
  EXPECT_THROW(layer.eval(), StateError);
  EXPECT_TRUE(layer.training());
  const Matrix<Scalar> unmerged = layer.infer(x);
  layer.merge({"dora"});
  refused({"plain"});
  const double rounding = 6.0 * 2 * (k + 2 * 14 + 16) * std::numeric_limits<Scalar>::epsilon() *
                          size_of_terms(layer, static_cast<double>(w.norm()));
  EXPECT_LE(static_cast<double>((layer.infer(x) - unmerged).norm()), rounding * static_cast<double>(x.norm()));
  EXPECT_THROW(layer.set_magnitude("dora", layer.magnitude("dora")), StateError);
  EXPECT_THROW(layer.add_adapter("late", dora_config(2), 1), StateError);
  EXPECT_FALSE(layer.has_adapter("late"));
  EXPECT_TRUE(same_bits(layer.unmerge().weight(), w));
}

TYPED_TEST(AdaptersWithDora, WhatHasNoMeaningWithDoraIsRefused) {
  using Scalar = typename TypeParam::Scalar;
  testing::MultiLayerUnderTest<TypeParam> made(random_matrix<Scalar>(d, k, 1), {});
  auto& layer = made.layer();
  add_four(layer, 0);
  const auto x = random_matrix<Scalar>(n, k, 3);
  layer.set_adapters({"dora"});
  layer.merge({"plain"});
  EXPECT_THROW((void)layer.infer(x), StateError);  // W is not W0
  layer.unmerge();
  EXPECT_THROW((void)layer.infer(x, Names(n, "dora")), ConfigError);
  EXPECT_EQ(layer.infer(x, Names(n, "plain2")).rows(), n);
  LoraAdapter<Scalar> plain("test", k, d, random_config(2), 1);
  LoraAdapter<Scalar> dora("test", k, d, dora_config(2), 1);
  EXPECT_THROW(layer.swap_adapter("dora", plain), ConfigError);
  EXPECT_THROW(layer.swap_adapter("plain", dora), ConfigError);
  EXPECT_THROW(layer.set_magnitude("plain", random_vector<Scalar>(d, 1)), ShapeError);
  EXPECT_THROW(layer.set_magnitude("dora", random_vector<Scalar>(d - 1, 1)), ShapeError);
  EXPECT_THROW(layer.set_magnitude("x", random_vector<Scalar>(d, 1)), ConfigError);
  EXPECT_THROW((void)layer.magnitude("x"), ConfigError);
  const auto dy = random_matrix<Scalar>(n, d, 4);
  MultiLoraRecord<Scalar> record;
  Workspace workspace;
  Matrix<Scalar> y(n, d);
  layer.forward(x, record, y, workspace);
  auto gradients = layer.make_gradients();
  gradients.adapters[0].magnitude.resize(d + 1);
  EXPECT_THROW(layer.backward(x, record, dy, gradients, workspace), ShapeError);
}

}  // namespace
}  // namespace lora
