// SPDX-License-Identifier: MIT
// Several adapters in one layer: sums, active sets, scales, biases, and rows that choose their own.
#include <algorithm>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <string>

#include "lora/core/error.hpp"
#include "support/bits.hpp"
#include "support/layer_cases.hpp"
#include "support/layer_oracle.hpp"

namespace lora::adapter_law_test {
namespace {

using namespace testing;

constexpr Index samples = 6;

LORA_LAYER_LAWS(Adapters);
LORA_LAYER_LAWS(RowsThatChoose);

void expect_same(const GradientValues& a, const GradientValues& b) {
  EXPECT_TRUE(same_bits(a.A, b.A));
  EXPECT_TRUE(same_bits(a.B, b.B));
  EXPECT_TRUE(same_bits(a.lora_bias, b.lora_bias));
  EXPECT_TRUE(same_bits(a.bias, b.bias));
  EXPECT_TRUE(same_bits(a.magnitude, b.magnitude));
}

/// Every pass of a layer with these adapters active, against the formula.
void expect_formula(const LayerCase& c, AnyLayer& layer, const Names& active) {
  const Rows x = c.inputs(samples, 3);
  const Rows dy = c.output_gradient(samples, 4);
  SCOPED_TRACE(::testing::PrintToString(active));
  layer.set_adapters(active);
  EXPECT_EQ(layer.active(), active);
  const auto adapters = adapters_of(layer, active);
  const auto pass = layer.pass(x);
  pass->infer();
  expected(c, adapters, x, dy).check_y(pass->y());
  EXPECT_TRUE(same_bits(layer.infer(x), pass->y()));
  pass->set_position(4, 17);
  pass->set_dy(dy);
  pass->forward();
  const auto formula = expected(c, adapters, x, dy, masks_of(c, adapters, samples, {4, 17}));
  formula.check_y(pass->y());
  pass->backward();
  if (c.has_dx) formula.check_dx(pass->dx());
  if (!active.empty()) formula.check(pass->gradients());

  // The layer's own form, with gradients in the adapters.
  layer.set_dropout_step(4);
  layer.zero_grad();
  pass->remembered_forward();
  const auto own = expected(c, adapters, x, dy, masks_of(c, adapters, samples, {4, 0}));
  own.check_y(pass->y());
  pass->remembered_backward();
  if (c.has_dx) own.check_dx(pass->dx());
  for (std::size_t i = 0; i < active.size(); ++i) own.check(i, layer.gradients(active[i]));
  // Those that take no part get nothing.
  for (const std::string& name : layer.names()) {
    if (std::find(active.begin(), active.end(), name) != active.end()) continue;
    EXPECT_TRUE(layer.gradients(name).A.isZero(0)) << name;
    EXPECT_TRUE(layer.gradients(name).lora_bias.isZero(0)) << name;
  }
}

// Any set of them, in any order: what each adds, once.
TEST_P(Adapters, AddUpForwardAndBackward) {
  const LayerCase& c = layer_case();
  const auto layer = layer_with(c, company_with_dora(c));
  const std::vector<Names> sets = {{"first"},
                                   {"third", "second"},
                                   {"third", "second", "first"},
                                   {"dora", "second"},
                                   {"first", "other_dora", "second", "dora"},
                                   {"other_dora", "dora"},
                                   {}};
  for (const Names& active : sets) expect_formula(c, *layer, active);
}

// Adapters without dropout share one pass over their inputs.
TEST_P(Adapters, AddUpInOnePassWithoutDropout) {
  const LayerCase& c = layer_case();
  auto company = company_with_dora(c);
  for (NamedConfig& one : company) one.config.dropout = 0;
  const auto layer = layer_with(c, company);
  expect_formula(c, *layer, {"third", "second", "first"});
  expect_formula(c, *layer, {"dora", "second", "other_dora"});
}

// With one active adapter a layer gives the bits of a layer that has only this one.
TEST_P(Adapters, OneOfManyHasTheBitsOfOneAlone) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const auto all = company_with_dora(c);
  const auto layer = layer_with(c, all);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto alone = c.make({.rank = 0}, 1);
    alone->add(all[i].name, all[i].config, 11 + i);
    disturb(c, *alone, all[i].name, 31 + i);
    layer->set_adapters({all[i].name});
    const auto of_many = layer->pass(x);
    const auto of_one = alone->pass(x);
    for (const auto& pass : {of_many.get(), of_one.get()}) {
      pass->set_dy(c.output_gradient(samples, 4));
      pass->set_position(2, 0);
      pass->forward();
      pass->backward();
    }
    EXPECT_TRUE(same_bits(of_many->y(), of_one->y()));
    EXPECT_TRUE(same_bits(of_many->dx(), of_one->dx()));
    expect_same(of_many->gradients()[0], of_one->gradients()[0]);
    EXPECT_TRUE(same_bits(layer->infer(x), alone->infer(x)));
    EXPECT_TRUE(same_bits(layer->bias(), alone->bias()));
    EXPECT_TRUE(same_bits(layer->delta_weight(all[i].name), alone->delta_weight(all[i].name)));
  }
}

TEST_P(Adapters, ScalesMultiplyAllThatAnAdapterAdds) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const Rows dy = c.output_gradient(samples, 4);
  const auto layer = layer_with(c, company(c));
  layer->set_adapters({"first", "third"});
  const double first = layer->values("first").scale;
  const double second = layer->values("second").scale;
  const double scaling = layer->values("first").scaling;
  layer->scale_layer(-2.5);
  EXPECT_EQ(layer->values("first").scale, first * -2.5);
  EXPECT_EQ(layer->values("first").scaling, c.rounded(Rows::Constant(1, 1, scaling * -2.5))(0, 0));
  EXPECT_EQ(layer->values("second").scale, second);
  expected(c, adapters_of(*layer, layer->active()), x, dy).check_y(layer->infer(x));
  layer->unscale_layer(-2.5);
  EXPECT_EQ(layer->values("first").scale, first);
  EXPECT_EQ(layer->values("first").scaling, scaling);
  layer->unscale_layer();
  EXPECT_EQ(layer->values("first").scale, 1);
  EXPECT_EQ(layer->values("second").scale, second);
  const double alpha = layer->values("first").config.alpha;
  layer->set_alpha("first", 3 * alpha);
  expected(c, adapters_of(*layer, layer->active()), x, dy).check_y(layer->infer(x));
  const AdapterValues before = layer->values("first");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(layer->set_scale("first", nan), ConfigError);
  EXPECT_THROW(layer->set_alpha("first", nan), ConfigError);
  EXPECT_THROW(layer->scale_layer(nan), ConfigError);
  EXPECT_THROW(layer->unscale_layer(0), ConfigError);
  // Nor where only the last one's scaling would not be finite.
  const double large = c.epsilon > 1e-10 ? 1e30 : 1e250;
  layer->set_scale("third", large);
  EXPECT_THROW(layer->scale_layer(large), ConfigError);
  EXPECT_EQ(layer->values("third").scale, large);
  EXPECT_EQ(layer->values("first").scaling, before.scaling);
  EXPECT_EQ(layer->values("first").scale, 1);
}

TEST_P(Adapters, DisabledTheyAnswerAsTheFrozenLayerAndNothingTrains) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const Rows frozen = c.make({.rank = 0}, 1)->infer(x);
  const auto layer = layer_with(c, company_with_dora(c));
  const Rows y = layer->infer(x);
  const auto active = layer->active();
  if (c.mergeable) layer->merge({"first", "dora"});
  layer->disable();
  EXPECT_FALSE(layer->merged());
  EXPECT_FALSE(layer->enabled());
  EXPECT_TRUE(same_bits(layer->infer(x), frozen));
  EXPECT_TRUE(same_bits(layer->bias(), layer->base_bias()));
  EXPECT_EQ(layer->active(), active);
  EXPECT_EQ(layer->parameter_count(), 0U);
  const auto pass = layer->pass(x);
  pass->set_dy(c.output_gradient(samples, 4));
  pass->remembered_forward();
  EXPECT_TRUE(same_bits(pass->y(), frozen));
  pass->remembered_backward();
  for (const std::string& name : layer->names()) EXPECT_TRUE(layer->gradients(name).A.isZero(0));
  EXPECT_THROW(layer->merge(), StateError);
  EXPECT_THROW(layer->merge({"first"}), StateError);
  layer->eval();
  EXPECT_FALSE(layer->merged());
  EXPECT_TRUE(same_bits(layer->infer(x), frozen));
  layer->enable();
  EXPECT_FALSE(layer->merged());
  EXPECT_TRUE(same_bits(layer->infer(x), y));
}

TEST_P(Adapters, AreAddedNamedAndDeleted) {
  const LayerCase& c = layer_case();
  const auto layer = layer_with(c, company(c));
  EXPECT_EQ(layer->names(), (Names{"first", "second", "third"}));
  EXPECT_THROW(layer->add("first", {.rank = c.rank}, 1), ConfigError);
  for (const std::string bad : {"", "a.b", "__base__"}) EXPECT_THROW(layer->add(bad, {.rank = c.rank}, 1), ConfigError);
  EXPECT_THROW(layer->add("fourth", {.rank = -1}, 1), ConfigError);
  EXPECT_THROW(layer->erase("fourth"), ConfigError);
  EXPECT_THROW(layer->set_adapters({"first", "fourth"}), ConfigError);
  EXPECT_THROW(layer->set_adapters({"first", "first"}), ConfigError);
  EXPECT_EQ(layer->active(), (Names{"first", "second", "third"}));
  layer->add("a", {.rank = c.rank}, 1);
  EXPECT_EQ(layer->active(), (Names{"first", "second", "third"}));
  const auto third = layer->values("third");
  layer->erase("second");
  EXPECT_EQ(layer->names(), (Names{"first", "third", "a"}));
  EXPECT_EQ(layer->active(), (Names{"first", "third"}));
  EXPECT_TRUE(same_bits(layer->values("third").A, third.A));
  layer->set_adapters({"third"});
  layer->erase("third");  // the only active one: the first of the others by name takes its place
  EXPECT_EQ(layer->active(), (Names{"a"}));
  layer->set_adapters({});
  layer->erase("a");
  EXPECT_TRUE(layer->active().empty());
  layer->erase("first");
  EXPECT_TRUE(layer->names().empty());
  const Rows x = c.inputs(samples, 3);
  EXPECT_TRUE(same_bits(layer->infer(x), c.make({.rank = 0}, 1)->infer(x)));
  layer->add("new", {.rank = c.rank}, 1);
  EXPECT_EQ(layer->active(), (Names{"new"}));
}

TEST_P(Adapters, SwappedKeepTheirNamesAndTakeWhatTheyLearned) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const auto layer = layer_with(c, company_with_dora(c));
  layer->set_adapters({"second"});
  const auto pass = layer->pass(x);
  pass->set_dy(c.output_gradient(samples, 4));
  pass->remembered_forward();
  pass->remembered_backward();
  layer->step();
  const AdapterValues old = layer->values("second");
  const GradientValues gradients = layer->gradients("second");
  const Rows y = layer->infer(x);

  const auto other = layer->make_adapter("elsewhere", {.rank = c.rank, .alpha = 7, .dropout = 0.5}, 99);
  const AdapterValues fresh = other->values();
  layer->swap("second", *other);
  EXPECT_EQ(layer->names(), (Names{"first", "second", "third", "dora", "other_dora"}));
  EXPECT_EQ(layer->active(), (Names{"second"}));
  EXPECT_EQ(other->values().name, "elsewhere");
  EXPECT_TRUE(same_bits(layer->values("second").A, fresh.A));
  EXPECT_EQ(layer->values("second").config.alpha, 7);
  EXPECT_TRUE(same_bits(other->values().A, old.A));
  EXPECT_THROW(pass->remembered_backward(), StateError);  // the pass was of the other one
  EXPECT_THROW(layer->swap("nobody", *other), ConfigError);
  EXPECT_EQ(layer->steps_taken(), (std::vector<std::int64_t>{0, 0}));

  layer->swap("second", *other);
  EXPECT_TRUE(same_bits(layer->infer(x), y));
  expect_same(layer->gradients("second"), gradients);
  EXPECT_EQ(layer->steps_taken(), (std::vector<std::int64_t>{1, 1}));
  layer->add(*other);
  EXPECT_EQ(layer->names().back(), "elsewhere");
}

// At most one adapter trains the layer's bias, and without it the layer has its own.
TEST_P(Adapters, OneTrainsTheBiasAndTakesItAway) {
  const LayerCase& c = layer_case();
  if (c.bias0.size() == 0) {
    const auto layer = c.make({.rank = c.rank, .bias = BiasMode::all}, 1);
    EXPECT_EQ(layer->values("default").bias.size(), 0);
    EXPECT_EQ(layer->bias().size(), 0);
    return;
  }
  const Rows x = c.inputs(samples, 3);
  const auto layer = layer_with(c, company(c));  // "first" trains the bias
  EXPECT_THROW(layer->add("fourth", {.rank = c.rank, .bias = BiasMode::all}, 1), ConfigError);
  const auto other = c.make({.rank = c.rank, .bias = BiasMode::lora_only}, 1);
  const auto fits = other->make_adapter("fits", {.rank = c.rank, .bias = BiasMode::all}, 1);
  EXPECT_THROW(layer->add(*fits), ConfigError);
  EXPECT_THROW(layer->swap("second", *fits), ConfigError);
  EXPECT_NO_THROW(layer->swap("first", *fits));
  EXPECT_NO_THROW(layer->swap("first", *fits));
  EXPECT_THROW(layer->set_bias("second", c.bias0), ShapeError);

  const Rows trained = layer->values("first").bias;
  EXPECT_FALSE(same_bits(trained, c.bias0));
  EXPECT_TRUE(same_bits(layer->bias(), trained));
  EXPECT_TRUE(same_bits(layer->base_bias(), c.bias0));
  layer->set_adapters({"second"});
  EXPECT_TRUE(same_bits(layer->bias(), c.bias0));
  expected(c, adapters_of(*layer, {"second"}), c.bias0, x, Rows()).check_y(layer->infer(x));
  layer->set_adapters({"second", "first"});
  EXPECT_TRUE(same_bits(layer->bias(), trained));
  layer->set_adapters({"first"});
  layer->disable();
  EXPECT_TRUE(same_bits(layer->bias(), c.bias0));
  layer->enable();
  layer->erase("first");
  EXPECT_TRUE(same_bits(layer->bias(), c.bias0));
  layer->add("again", {.rank = c.rank, .bias = BiasMode::lora_only}, 1);
  EXPECT_TRUE(same_bits(layer->values("again").bias, c.bias0));
  layer->unload();
  EXPECT_TRUE(same_bits(layer->bias(), c.bias0));
}

TEST_P(Adapters, ACopyIsALayerOfItsOwn) {
  const LayerCase& c = layer_case();
  const auto layer = layer_with(c, company_with_dora(c));
  if (!layer->copyable()) GTEST_SKIP() << "two layers must not merge into one memory";
  const Rows x = c.inputs(samples, 3);
  const auto pass = layer->pass(x);
  pass->set_dy(c.output_gradient(samples, 4));
  pass->remembered_forward();
  pass->remembered_backward();
  layer->step();
  layer->set_adapters({"dora", "first"});
  if (c.mergeable) layer->merge({"first"});
  EXPECT_GT(layer->parameter_count(), 0U);  // handles, which a copy does not take
  const auto twin = layer->copy();
  EXPECT_EQ(twin->merged_adapters(), c.mergeable ? Names{"first"} : Names{});
  EXPECT_EQ(twin->values("first").merged, c.mergeable);
  const Rows merged = layer->weight();
  twin->unmerge();
  EXPECT_TRUE(same_bits(twin->weight(), c.w0));
  EXPECT_TRUE(same_bits(layer->weight(), merged));
  layer->unmerge();
  EXPECT_TRUE(same_bits(twin->infer(x), layer->infer(x)));
  EXPECT_EQ(twin->steps_taken(), layer->steps_taken());
  const Rows y = layer->infer(x);
  disturb(c, *twin, "dora", 77);
  twin->step();
  EXPECT_TRUE(same_bits(layer->infer(x), y));
  EXPECT_FALSE(same_bits(twin->infer(x), y));
}

// Rows.

Names choices_of(const Names& names, Index rows, unsigned seed) {
  std::mt19937 random(seed);
  Names all = names;
  all.push_back("__base__");
  Names choices;
  for (Index i = 0; i < rows; ++i) choices.push_back(all[random() % all.size()]);
  return choices;
}

// Row by row the bits of infer() with that adapter alone, whatever the others choose.
TEST_P(RowsThatChoose, HaveTheBitsOfTheirAdapterAlone) {
  const LayerCase& c = layer_case();
  if (!c.by_row) GTEST_SKIP();
  constexpr Index rows = 13;
  const Rows x = c.inputs(rows, 3);
  // Adapters that share one product with W, and such that ask for more.
  auto thrifty = company(c);
  for (auto& [name, config] : thrifty) config.lora_bias = false, config.bias = BiasMode::none;
  for (const auto& adapters : {thrifty, company(c), company_with_dora(c)}) {
    const auto layer = layer_with(c, adapters);
    const Names names = names_of(adapters);
    std::vector<Rows> alone;
    for (const std::string& name : names) {
      layer->set_adapters({name});
      alone.push_back(layer->infer(x));
    }
    layer->set_adapters({});
    alone.push_back(layer->infer(x));
    layer->set_adapters({names[1]});  // what is active does not matter
    for (unsigned seed = 0; seed < 6; ++seed) {
      Names choices = choices_of(names, rows, seed);
      if (seed == 0) std::sort(choices.begin(), choices.end());
      if (seed == 1) std::fill(choices.begin(), choices.end(), names.back());
      if (seed == 2) std::fill(choices.begin(), choices.end(), "__base__");
      std::vector<Index> positions;
      Rows expected_y(rows, c.output_width());
      for (Index i = 0; i < rows; ++i) {
        const auto& choice = choices[static_cast<std::size_t>(i)];
        const auto at = static_cast<std::size_t>(std::find(names.begin(), names.end(), choice) - names.begin());
        positions.push_back(choice == "__base__" ? -1 : static_cast<Index>(at));
        expected_y.row(i) = alone[at].row(i);
      }
      for (const Order order : {Order::rows, Order::columns}) {
        const auto pass = layer->pass(x, order);
        pass->infer(choices);
        EXPECT_TRUE(same_bits(pass->y(), expected_y)) << seed;
        pass->fill_y(3);
        pass->infer(positions);
        EXPECT_TRUE(same_bits(pass->y(), expected_y)) << seed;
      }
      EXPECT_TRUE(same_bits(layer->infer(x, choices), expected_y)) << seed;
      layer->set_row_adapters(choices, false);
      EXPECT_TRUE(same_bits(layer->infer(x), expected_y)) << seed;
      layer->clear_row_adapters();
    }
  }
}

TEST_P(RowsThatChoose, ForBatchesToComeTakeEqualPartsOfTheRows) {
  const LayerCase& c = layer_case();
  if (!c.by_row) GTEST_SKIP();
  const Rows x = c.inputs(6, 3);
  const auto layer = layer_with(c, company_with_dora(c));
  const Rows y = layer->infer(x, {"second", "second", "__base__", "__base__", "dora", "dora"});
  layer->set_row_adapters({"second", "__base__", "dora"}, false);
  EXPECT_TRUE(same_bits(layer->infer(x), y));
  const auto pass = layer->pass(x);
  pass->remembered_forward();  // training takes the active ones
  EXPECT_FALSE(same_bits(pass->y(), y));
  layer->set_adapters({"second", "dora"});  // one of them could be merged
  for (const std::string& name : layer->names()) static_cast<void>(name);
  EXPECT_THROW(static_cast<void>(layer->infer(c.inputs(4, 3))), ShapeError);
  EXPECT_THROW(layer->set_row_adapters({"second", "nobody"}, false), ConfigError);
  EXPECT_TRUE(same_bits(layer->infer(x), y));
  layer->set_row_adapters({"second", "nobody", "dora"}, true);
  EXPECT_TRUE(same_bits(layer->infer(x), y));
  layer->clear_row_adapters();
  EXPECT_FALSE(same_bits(layer->infer(x), y));
}

TEST_P(RowsThatChoose, AreRefusedWhereTheyCannotBe) {
  const LayerCase& c = layer_case();
  if (!c.by_row) GTEST_SKIP();
  const Rows x = c.inputs(3, 3);
  const auto layer = layer_with(c, company(c));
  const auto pass = layer->pass(x);
  EXPECT_THROW(pass->infer(Names{"first", "second"}), ShapeError);
  EXPECT_THROW(pass->infer(Names{"first", "second", "nobody"}), ConfigError);
  EXPECT_THROW(pass->infer(std::vector<Index>{0, 1, 3}), ConfigError);
  EXPECT_THROW(pass->infer(std::vector<Index>{0, -2, 1}), ConfigError);
  const Rows frozen = c.make({.rank = 0}, 1)->infer(x);
  layer->disable();
  EXPECT_TRUE(same_bits(layer->infer(x, {"first", "second", "third"}), frozen));
  layer->enable();
  if (!c.mergeable) return;
  layer->merge({"third"});
  EXPECT_THROW(pass->infer(Names{"first", "second", "first"}), StateError);
}

// Positions of names move when an adapter goes; the choices of batches to come are of adapters, not of places.
TEST_P(RowsThatChoose, KeepTheirAdapterWhenAnotherGoes) {
  const LayerCase& c = layer_case();
  if (!c.by_row) GTEST_SKIP();
  const Rows x = c.inputs(2, 3);
  const auto layer = layer_with(c, company(c));
  const Rows y = layer->infer(x, {"third", "second"});
  layer->set_row_adapters({"third", "second"}, false);
  layer->erase("first");
  EXPECT_TRUE(same_bits(layer->infer(x), y));
  layer->erase("second");  // nobody answers its rows but the frozen layer
  EXPECT_TRUE(same_bits(layer->infer(x), layer->infer(x, {"third", "__base__"})));
}

}  // namespace
}  // namespace lora::adapter_law_test
