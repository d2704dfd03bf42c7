// SPDX-License-Identifier: MIT
// Merging: exact, atomic, and the same answer; taking adapters out in any order; unloading.
#include <algorithm>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <string>

#include "lora/core/error.hpp"
#include "support/bits.hpp"
#include "support/layer_cases.hpp"
#include "support/layer_oracle.hpp"

namespace lora::merge_law_test {
namespace {

using namespace testing;

constexpr Index samples = 5;

LORA_LAYER_LAWS(Merging);

// The weight after these were merged into W0 alone, in this order.
Rows weight_of(const LayerCase& c, const std::vector<NamedConfig>& adapters, const Names& merged) {
  const auto layer = layer_with(c, adapters);
  layer->merge(merged);
  return layer->weight();
}

TEST_P(Merging, AnswersAsBeforeAndAddsTheDelta) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  const Rows x = c.inputs(samples, 3);
  const Rows dy = c.output_gradient(samples, 4);
  for (const auto& [name, config] : configurations(c)) {
    SCOPED_TRACE(name);
    const auto layer = c.make(config, 5);
    disturb(c, *layer, "default", 8);
    const Rows delta = layer->delta_weight("default");
    const auto formula = expected(c, adapters_of(*layer, layer->names()), x, dy);
    EXPECT_TRUE(formula.near(delta, testing::detail::delta_of(c, layer->values("default"), {false}),
                             testing::detail::delta_of(c, layer->values("default"), {true}), "delta"));
    layer->eval();
    EXPECT_TRUE(layer->merged());
    EXPECT_FALSE(layer->training());
    formula.check_merged_y(layer->infer(x));
    formula.check_merged_y(layer->forward(x));
    if (!config.use_dora) {
      EXPECT_TRUE(same_bits(layer->weight(), c.merged(c.w0, delta)));
      EXPECT_TRUE(same_bits(layer->delta_weight("default"), delta));
    }
    EXPECT_TRUE(same_bits(layer->base_weight(), c.w0));
    EXPECT_GT(layer->merge_bytes(), 0U);
    layer->train();
    EXPECT_TRUE(same_bits(layer->weight(), c.w0));
    EXPECT_EQ(layer->merge_bytes(), 0U);
  }
}

TEST_P(Merging, SeveralAdaptersAnswerAsBefore) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  const Rows x = c.inputs(samples, 3);
  auto adapters = company(c);
  adapters.push_back({"dora", {.rank = c.rank, .alpha = 4, .use_dora = true}});
  const auto layer = layer_with(c, adapters);
  const auto formula = expected(c, adapters_of(*layer, layer->names()), x, c.output_gradient(samples, 4));
  formula.check_y(layer->infer(x));
  layer->merge({"second", "dora"});  // the magnitude multiplies W0 alone, so that it goes below the other
  EXPECT_EQ(layer->merged_adapters(), (Names{"dora", "second"}));
  formula.check_merged_y(layer->infer(x));
  EXPECT_TRUE(same_bits(layer->base_weight(), c.w0));
  layer->merge();
  EXPECT_EQ(layer->merged_adapters(), (Names{"dora", "second", "first", "third"}));
  formula.check_merged_y(layer->infer(x));
  EXPECT_TRUE(same_bits(layer->base_weight(), c.w0));
  // A merged adapter that is not active answers too; set_adapters takes it out.
  layer->set_adapters({"third"});
  EXPECT_EQ(layer->merged_adapters(), (Names{"third"}));
  expected(c, adapters_of(*layer, {"third"}), x, Rows()).check_merged_y(layer->infer(x));
}

// Merging an adapter that is not active adds all that it has trained, its bias of the layer included.
TEST_P(Merging, AnAdapterAnswersWithItsTrainedBiasWhileMergedAndNotActive) {
  const LayerCase& c = layer_case();
  if (!c.mergeable || c.bias0.size() == 0) GTEST_SKIP();
  const Rows x = c.inputs(samples, 3);
  const auto layer = layer_with(c, company(c));
  const Rows trained = layer->values("first").bias;
  ASSERT_GT(trained.size(), 0);
  layer->set_adapters({"third"});
  EXPECT_TRUE(same_bits(layer->bias(), layer->base_bias()));
  layer->merge({"first"});
  EXPECT_TRUE(same_bits(layer->bias(), trained));
  expected(c, adapters_of(*layer, {"first", "third"}), x, Rows()).check_merged_y(layer->infer(x));
  layer->unmerge();
  EXPECT_TRUE(same_bits(layer->bias(), layer->base_bias()));
  expected(c, adapters_of(*layer, {"third"}), x, Rows()).check_y(layer->infer(x));
  layer->merge({"first"});
  layer->merge_and_unload();
  EXPECT_EQ(layer->base_bias().size(), trained.size());
  if (!c.has_lora_bias) {
    EXPECT_TRUE(same_bits(layer->base_bias(), trained));
  }
}

TEST_P(Merging, AnyOfThemIsTakenOutBitForBit) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  auto adapters = company(c);
  adapters.push_back({"dora", {.rank = c.rank, .alpha = 4, .use_dora = true}});
  const Names order = {"dora", "third", "first", "second"};
  for (unsigned out = 0; out < 16; ++out) {
    const auto layer = layer_with(c, adapters);
    layer->merge(order);
    Names stay, gone;
    for (unsigned i = 0; i < 4; ++i) ((out >> i & 1U) != 0 ? gone : stay).push_back(order[i]);
    std::reverse(gone.begin(), gone.end());
    layer->unmerge(gone);
    EXPECT_EQ(layer->merged_adapters(), stay);
    EXPECT_TRUE(same_bits(layer->weight(), weight_of(c, adapters, stay))) << out;
    EXPECT_TRUE(same_bits(layer->base_weight(), c.w0)) << out;
    layer->unmerge(order);
    EXPECT_TRUE(same_bits(layer->weight(), c.w0)) << out;
  }
}

TEST_P(Merging, ManyCyclesAndHugeDeltasLeaveNoTrace) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  const auto adapters = company_with_dora(c);
  const auto layer = layer_with(c, adapters);
  std::mt19937 random(1);
  for (const double scale : {1.0, 1e-6, 1e6, 1e18, 1e-30}) {
    for (const auto& [name, config] : adapters) layer->set_scale(name, scale);
    for (int cycle = 0; cycle < 6; ++cycle) {
      Names chosen = {"first", "second", "third", cycle % 2 == 0 ? "dora" : "other_dora"};
      std::shuffle(chosen.begin(), chosen.end(), random);
      chosen.resize(1 + random() % 4);
      try {
        layer->merge(chosen);
      } catch (const StateError&) {
        // s B A of 1e18 does not fit beside the norms of float, nor 1e6 into F16
        EXPECT_GT(scale, c.storage == WeightStorage::f16 ? 1e3 : 1e10);
      }
      EXPECT_TRUE(same_bits(layer->base_weight(), c.w0));
      layer->unmerge();
      EXPECT_TRUE(same_bits(layer->weight(), c.w0)) << scale;
    }
  }
}

TEST_P(Merging, ASumThatIsNotFiniteChangesNothing) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  const auto adapters = company(c);
  const double huge = c.epsilon > 1e-10 ? 1e38 : 1e308;
  for (const double bad : {huge, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const auto layer = layer_with(c, adapters);
    AdapterValues v = layer->values("third");
    v.A(v.A.rows() - 1, v.A.cols() - 1) = bad;
    v.B.setConstant(bad == huge ? 100 : 1);
    layer->set_factors("third", v.A, v.B);
    layer->merge({"second"});
    const Rows before = layer->weight();
    try {
      layer->merge({"first", "third"});
      ADD_FAILURE() << "merged " << bad;
    } catch (const StateError& error) {
      EXPECT_NE(std::string(error.what()).find(c.layer_name + "::merge of \"third\""), std::string::npos)
          << error.what();
    }
    EXPECT_TRUE(same_bits(layer->weight(), before)) << bad;
    EXPECT_EQ(layer->merged_adapters(), (Names{"second"}));
    EXPECT_TRUE(layer->training());
    EXPECT_THROW(layer->eval(), StateError);
    EXPECT_TRUE(layer->training());
    EXPECT_THROW(layer->merge_and_unload(), StateError);
    EXPECT_EQ(layer->names().size(), 3U);
    EXPECT_TRUE(same_bits(layer->weight(), before)) << bad;
    // One with DoRA goes below what is merged, which is merged again when that fails.
    layer->unmerge();
    layer->add("dora", {.rank = c.rank, .alpha = 4, .use_dora = true}, 3);
    disturb(c, *layer, "dora", 6);
    AdapterValues dora = layer->values("dora");
    dora.magnitude(0, 0) = bad == huge ? std::numeric_limits<double>::infinity() : bad;
    layer->set_magnitude("dora", dora.magnitude);
    layer->merge({"second"});
    EXPECT_THROW(layer->merge({"dora"}), StateError);
    EXPECT_EQ(layer->merged_adapters(), (Names{"second"}));
    EXPECT_TRUE(same_bits(layer->weight(), before)) << bad;
    layer->unmerge();
    EXPECT_TRUE(same_bits(layer->weight(), c.w0)) << bad;
  }
}

// A weight that cannot be merged into: eval() answers unmerged, merge() says what to do.
TEST_P(Merging, AWeightThatCannotBeMergedIntoStaysUnmerged) {
  const LayerCase& c = layer_case();
  const auto layer = layer_with(c, company(c));
  EXPECT_EQ(layer->mergeable(), c.mergeable);
  if (c.mergeable) return;
  const Rows x = c.inputs(samples, 3);
  const Rows y = layer->infer(x);
  try {
    layer->merge();
    ADD_FAILURE() << "merged";
  } catch (const StateError& error) {
    EXPECT_EQ(std::string(error.what()),
              c.layer_name +
                  "::merge: weight: expected one that can be merged into (answer unmerged; or make the layer over a "
                  "PackedWeight copy, as dequantized() gives; or over what requantize() makes of the weight and the "
                  "update), got a read-only weight, or one of a kind that cannot be merged into");
  }
  EXPECT_THROW(layer->merge_and_unload(), StateError);
  EXPECT_TRUE(layer->training());
  layer->eval();
  EXPECT_FALSE(layer->training());
  EXPECT_FALSE(layer->merged());
  EXPECT_TRUE(same_bits(layer->forward(x), y));
  EXPECT_TRUE(same_bits(layer->weight(), c.w0));
}

TEST_P(Merging, WhileMergedNothingThatItWasMadeOfChanges) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  for (const auto& [name, config] : configurations(c)) {
    SCOPED_TRACE(name);
    const auto layer = c.make(config, 5);
    disturb(c, *layer, "default", 8);
    const Rows x = c.inputs(samples, 3);
    layer->pass(x)->remembered_forward();
    const AdapterValues v = layer->values("default");
    const auto pass = layer->pass(x);
    pass->set_dy(c.output_gradient(samples, 4));
    pass->forward();
    const auto other = layer->make_adapter("other", {.rank = c.rank}, 3);
    layer->merge();
    EXPECT_TRUE(layer->values("default").merged);
    EXPECT_THROW(layer->set_factors("default", v.A, v.B), StateError);
    EXPECT_THROW(layer->set_scale("default", 2), StateError);
    EXPECT_THROW(layer->set_alpha("default", 2), StateError);
    EXPECT_THROW(layer->scale_layer(2), StateError);
    EXPECT_THROW(layer->unscale_layer(2), StateError);
    EXPECT_THROW(layer->unscale_layer(), StateError);
    EXPECT_THROW(layer->set_lora_bias("default", v.lora_bias), StateError);
    EXPECT_THROW(layer->set_magnitude("default", v.magnitude), StateError);
    EXPECT_THROW(layer->set_bias("default", v.bias), StateError);
    EXPECT_THROW(layer->swap("default", *other), StateError);
    EXPECT_THROW(layer->erase("default"), StateError);
    EXPECT_THROW(layer->reset(config, 1), StateError);
    EXPECT_THROW(layer->step(), StateError);
    EXPECT_THROW(pass->forward(), StateError);
    EXPECT_LT(pass->tape_rows(), 0);
    EXPECT_THROW(pass->backward(), StateError);
    EXPECT_THROW(pass->remembered_forward(), StateError);
    EXPECT_THROW(pass->remembered_backward(), StateError);
    EXPECT_THROW(layer->add("dora", {.rank = c.rank, .use_dora = true}, 1), StateError);
    EXPECT_EQ(layer->names(), (Names{"default"}));
    layer->train();
    EXPECT_TRUE(same_bits(layer->values("default").A, v.A));
    EXPECT_EQ(layer->values("default").scaling, v.scaling);
    EXPECT_NO_THROW(layer->set_scale("default", 2));
  }
}

TEST_P(Merging, AtMostOneWithDoraIsMerged) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  const auto layer = layer_with(c, company_with_dora(c));
  const Rows x = c.inputs(samples, 3);
  const Rows y = layer->infer(x);
  EXPECT_THROW(layer->merge(), StateError);
  EXPECT_FALSE(layer->merged());
  layer->eval();  // several with DoRA answer unmerged
  EXPECT_FALSE(layer->merged());
  EXPECT_TRUE(same_bits(layer->forward(x), y));
  layer->merge({"second", "dora"});
  const Rows before = layer->weight();
  EXPECT_THROW(layer->merge({"other_dora"}), StateError);
  EXPECT_TRUE(same_bits(layer->weight(), before));
  // The norms of other_dora are against W0.
  EXPECT_THROW(static_cast<void>(layer->infer(x)), StateError);
}

TEST_P(Merging, TrainAndEvalFollowMergeWeights) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  auto adapters = company(c);
  adapters[1].config.merge_weights = false;
  const auto layer = layer_with(c, adapters);
  const Rows x = c.inputs(samples, 3);
  const auto formula = expected(c, adapters_of(*layer, layer->names()), x, c.output_gradient(samples, 4));
  layer->eval();
  layer->eval();
  EXPECT_EQ(layer->merged_adapters(), (Names{"first", "third"}));
  formula.check_merged_y(layer->infer(x));
  layer->merge();
  EXPECT_EQ(layer->merged_adapters(), (Names{"first", "third", "second"}));
  layer->train();
  layer->train();
  EXPECT_EQ(layer->merged_adapters(), (Names{"second"}));
  formula.check_merged_y(layer->infer(x));
  layer->unmerge();
  EXPECT_TRUE(same_bits(layer->weight(), c.w0));
}

TEST_P(Merging, AnUnloadedLayerAnswersAsTheMergedOneDid) {
  const LayerCase& c = layer_case();
  if (!c.mergeable) GTEST_SKIP();
  const Rows x = c.inputs(samples, 3);
  auto all = configurations(c);
  for (std::size_t i = 0; i <= all.size(); ++i) {
    std::unique_ptr<AnyLayer> layer;
    if (i < all.size()) {
      SCOPED_TRACE(all[i].name);
      layer = c.make(all[i].config, 5);
      disturb(c, *layer, "default", 8);
    } else {
      layer = layer_with(c, company(c));
    }
    const auto pass = layer->pass(x);
    pass->set_dy(c.output_gradient(samples, 4));
    pass->remembered_forward();
    layer->merge();
    const Rows y = layer->infer(x);
    const Rows merged = layer->weight();
    layer->merge_and_unload();
    EXPECT_TRUE(same_bits(layer->infer(x), y));
    EXPECT_TRUE(same_bits(layer->weight(), merged));
    EXPECT_TRUE(same_bits(layer->base_weight(), merged));
    EXPECT_TRUE(layer->names().empty());
    EXPECT_TRUE(layer->active().empty());
    EXPECT_FALSE(layer->merged());
    EXPECT_EQ(layer->parameter_count(), 0U);
    EXPECT_EQ(layer->merge_bytes(), 0U);
    EXPECT_THROW(pass->remembered_backward(), StateError);
    EXPECT_THROW(pass->backward(), StateError);
    // It is a layer like any other: training modes, a new adapter with DoRA of the new weight.
    layer->train();
    EXPECT_TRUE(same_bits(layer->weight(), merged));
    EXPECT_TRUE(same_bits(layer->forward(x), y));
    layer->add("default", {.rank = c.rank, .use_dora = true}, 1);
    const Rows magnitude = layer->values("default").magnitude;
    ASSERT_EQ(magnitude.size(), static_cast<Index>(c.adapted.size()));
    for (std::size_t j = 0; j < c.adapted.size(); ++j) {
      const double norm = merged.row(c.adapted[j]).norm();
      EXPECT_NEAR(magnitude(0, static_cast<Index>(j)), norm, 4 * c.epsilon * norm) << j;
    }
    EXPECT_LE((layer->infer(x) - y).cwiseAbs().maxCoeff(),
              c.epsilon * static_cast<double>(4 * c.longest_sum()) * (1 + y.cwiseAbs().maxCoeff()));
    layer->eval();
    layer->train();
    EXPECT_TRUE(same_bits(layer->weight(), merged));
  }
}

TEST_P(Merging, UnloadGivesTheFrozenLayerBackBitForBit) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const Rows y = c.make({.rank = 0}, 1)->infer(x);
  for (const bool merges : {false, true}) {
    if (merges && !c.mergeable) continue;
    const auto layer = layer_with(c, company(c));
    const auto pass = layer->pass(x);
    pass->set_dy(c.output_gradient(samples, 4));
    pass->remembered_forward();
    if (c.by_row) layer->set_row_adapters({"first", "second", "third", "first", "second"}, false);
    if (merges) layer->merge();
    layer->unload();
    EXPECT_TRUE(same_bits(layer->weight(), c.w0));
    EXPECT_TRUE(same_bits(layer->bias(), layer->base_bias()));
    EXPECT_TRUE(same_bits(layer->infer(x), y));
    EXPECT_TRUE(layer->names().empty());
    EXPECT_EQ(layer->dropout_step(), 0U);
    EXPECT_THROW(pass->remembered_backward(), StateError);
    // A pass of the frozen layer is forgotten too.
    pass->remembered_forward();
    EXPECT_NO_THROW(pass->remembered_backward());
    merges ? layer->merge_and_unload() : layer->unload();
    EXPECT_THROW(pass->remembered_backward(), StateError);
  }
}

}  // namespace
}  // namespace lora::merge_law_test
