// SPDX-License-Identifier: MIT
// Training: dropout's masks, tapes and what they are refused for, and resetting.
#include <gtest/gtest.h>
#include <limits>

#include "lora/core/error.hpp"
#include "support/bits.hpp"
#include "support/held_bytes.hpp"
#include "support/layer_cases.hpp"
#include "support/layer_oracle.hpp"
#include "support/thread_executor.hpp"

namespace lora::training_law_test {
namespace {

using namespace testing;

constexpr Index samples = 6;

LORA_LAYER_LAWS(Dropout);
LORA_LAYER_LAWS(Tapes);
LORA_LAYER_LAWS(Resetting);

std::unique_ptr<AnyLayer> dropping_layer(const LayerCase& c, std::uint64_t seed = 5) {
  auto layer = c.make({.rank = c.rank, .alpha = 7, .dropout = 0.5}, seed);
  disturb(c, *layer, "default", 8);
  return layer;
}

std::unique_ptr<LayerPass> pass_over(const LayerCase& c, AnyLayer& layer, const Rows& x) {
  auto pass = layer.pass(x);
  pass->set_dy(c.output_gradient(x.rows(), 4));
  return pass;
}

// The masks are computed here from the seed and a count of passes, never from what the layer says its step is.
TEST_P(Dropout, EveryPassOfTrainingDrawsTheNextMask) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const auto layer = dropping_layer(c);
  const auto adapters = adapters_of(*layer, {"default"});
  const auto pass = pass_over(c, *layer, x);
  Rows last;
  for (std::uint64_t step = 0; step < 4; ++step) {
    layer->zero_grad();
    pass->remembered_forward();
    const auto formula =
        expected(c, adapters, x, c.output_gradient(samples, 4), masks_of(c, adapters, samples, {step, 0}));
    formula.check_y(pass->y());
    pass->remembered_backward();
    if (c.has_dx) formula.check_dx(pass->dx());
    formula.check(0, layer->gradients("default"));
    if (c.drops) {
      EXPECT_FALSE(step > 0 && same_bits(pass->y(), last)) << "the mask of the pass before";
      EXPECT_FALSE(same_bits(pass->y(), layer->infer(x)));
    }
    last = pass->y();
    // Inference and evaluation draw none.
    static_cast<void>(layer->infer(x));
    layer->eval();
    static_cast<void>(layer->forward(x));
    layer->train();
    if (c.drops) {
      EXPECT_EQ(layer->dropout_step(), step + 1);
    }
  }
  // A checkpoint's step brings its mask back.
  if (!c.drops) return;
  layer->set_dropout_step(3);
  pass->remembered_forward();
  EXPECT_TRUE(same_bits(pass->y(), last));
}

TEST_P(Dropout, DependsOnTheSeedAndNotOnTheWorkers) {
  const LayerCase& c = layer_case();
  if (!c.drops) GTEST_SKIP();
  const Rows x = c.inputs(samples, 3);
  ThreadExecutor threads(4);
  const auto layer = dropping_layer(c);
  const auto same = dropping_layer(c);
  const auto other = c.make({.rank = c.rank, .alpha = 7, .dropout = 0.5}, 6);
  const AdapterValues v = layer->values("default");
  other->set_factors("default", v.A, v.B);
  other->set_scale("default", v.scale);
  same->set_executor(threads);
  const auto one = pass_over(c, *layer, x);
  const auto two = pass_over(c, *same, x);
  const auto three = pass_over(c, *other, x);
  for (const auto& pass : {one.get(), two.get(), three.get()}) {
    pass->remembered_forward();
    pass->remembered_backward();
  }
  EXPECT_TRUE(same_bits(two->y(), one->y()));
  EXPECT_TRUE(same_bits(two->dx(), one->dx()));
  EXPECT_TRUE(same_bits(same->gradients("default").A, layer->gradients("default").A));
  EXPECT_TRUE(same_bits(same->gradients("default").B, layer->gradients("default").B));
  EXPECT_FALSE(same_bits(three->y(), one->y()));
}

// Two passes may be under way; each is differentiated with its own mask.
TEST_P(Dropout, BackwardUsesTheMaskOfItsOwnPass) {
  const LayerCase& c = layer_case();
  const auto layer = layer_with(c, company_with_dora(c));
  const Rows x1 = c.inputs(samples, 3), x2 = c.inputs(samples + 3, 5);
  const auto adapters = adapters_of(*layer, layer->active());
  const auto one = pass_over(c, *layer, x1), two = pass_over(c, *layer, x2);
  one->set_position(1, 0);
  two->set_position(2, 40);
  one->forward();
  two->forward();
  two->backward();
  one->backward();
  const auto first = expected(c, adapters, x1, c.output_gradient(samples, 4), masks_of(c, adapters, samples, {1, 0}));
  const auto second =
      expected(c, adapters, x2, c.output_gradient(samples + 3, 4), masks_of(c, adapters, samples + 3, {2, 40}));
  first.check(one->gradients());
  second.check(two->gradients());
  if (!c.has_dx) return;
  first.check_dx(one->dx());
  second.check_dx(two->dx());
}

TEST_P(Tapes, AreRefusedBeforeAPassAndAfterOneThatFailed) {
  const LayerCase& c = layer_case();
  const auto layer = dropping_layer(c);
  const auto pass = pass_over(c, *layer, c.inputs(samples, 3));
  EXPECT_EQ(pass->tape_rows(), -1);
  EXPECT_EQ(pass->tape_bytes(), 0U);
  EXPECT_THROW(pass->backward(), StateError);
  EXPECT_THROW(pass->remembered_backward(), StateError);
  EXPECT_THROW(pass->remembered_accumulate(), StateError);
  pass->forward();
  pass->remembered_forward();
  EXPECT_EQ(pass->tape_rows(), samples);
  EXPECT_GT(pass->tape_bytes(), 0U);
  EXPECT_NO_THROW(pass->backward());
  pass->resize_y(samples - 1);
  EXPECT_THROW(pass->forward(), ShapeError);
  EXPECT_EQ(pass->tape_rows(), -1);
  EXPECT_THROW(pass->backward(), StateError);
  // A remembered pass that was refused leaves the last one.
  EXPECT_THROW(pass->remembered_forward(), ShapeError);
  EXPECT_NO_THROW(pass->remembered_backward());
}

TEST_P(Tapes, OfOtherAdaptersAreRefusedAndChangeNothing) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const auto layer = layer_with(c, company_with_dora(c));
  const auto pass = pass_over(c, *layer, x);
  const auto refused = [&](const Names& then, const Names& now) {
    layer->set_adapters(then);
    pass->renew_gradients();
    pass->forward();
    pass->remembered_forward();
    layer->set_adapters(now);
    pass->renew_gradients();
    EXPECT_THROW(pass->backward(), StateError);
    EXPECT_THROW(pass->accumulate(), StateError);
    EXPECT_THROW(pass->remembered_backward(), StateError);
    EXPECT_TRUE(pass->gradients()[0].A.isZero(0));
    for (const std::string& name : layer->names()) EXPECT_TRUE(layer->gradients(name).B.isZero(0));
  };
  refused({"first", "third"}, {"third", "first"});
  refused({"first", "third"}, {"first"});
  refused({"first"}, {"third"});  // of one rank
  refused({"first"}, {"dora"});
  refused({"dora"}, {"other_dora"});
  refused({"second"}, {"second", "dora"});
  refused({}, {"second"});
  layer->set_adapters({"second"});
  pass->renew_gradients();
  pass->forward();
  layer->disable();
  EXPECT_THROW(pass->backward(), Error);
  layer->enable();
  EXPECT_NO_THROW(pass->backward());
  // The adapter of that name is another one now.
  layer->erase("second");
  layer->add("second", company(c)[1].config, 5);
  layer->set_adapters({"second"});
  pass->renew_gradients();
  EXPECT_THROW(pass->backward(), StateError);
}

TEST_P(Tapes, OfOtherShapesAreRefused) {
  const LayerCase& c = layer_case();
  const auto layer = layer_with(c, company(c));
  const auto pass = pass_over(c, *layer, c.inputs(samples, 3));
  pass->forward();
  pass->set_dy(c.output_gradient(samples + 1, 3));
  EXPECT_THROW(pass->backward(), ShapeError);
  pass->set_dy(c.output_gradient(samples, 3).leftCols(c.output_width() - 1));
  EXPECT_THROW(pass->backward(), ShapeError);
  pass->set_dy(c.output_gradient(samples, 3));
  pass->set_x(c.inputs(samples + 1, 3));
  EXPECT_THROW(pass->backward(), ShapeError);
  EXPECT_THROW(pass->accumulate(), ShapeError);
  EXPECT_TRUE(pass->gradients()[0].A.isZero(0));
  // A layer whose only adapter has another rank, or drops where this one does not.
  for (const LoraConfig& config : {LoraConfig{.rank = 2 * c.rank}, LoraConfig{.rank = c.rank, .use_dora = true},
                                   LoraConfig{.rank = c.rank, .dropout = 0.5}}) {
    if (config.dropout > 0 && !c.drops) continue;
    const auto one = c.make({.rank = c.rank}, 1), other = c.make(config, 1);
    const auto of_one = pass_over(c, *one, c.inputs(samples, 3)), of_other = pass_over(c, *other, c.inputs(samples, 3));
    of_one->forward();
    of_other->take_tape(*of_one);
    EXPECT_THROW(of_other->backward(), StateError);
    of_other->forward();
    of_one->take_tape(*of_other);
    EXPECT_THROW(of_one->backward(), StateError);
  }
}

TEST_P(Tapes, HoldNoMoreThanTheySay) {
  const LayerCase& c = layer_case();
  const auto layer = dropping_layer(c);
  const auto pass = pass_over(c, *layer, c.inputs(samples, 3));
  pass->forward();
  const auto scalar = static_cast<std::size_t>(c.epsilon > 1e-10 ? 4 : 8);
  const auto of = [](Index n) { return static_cast<std::size_t>(n); };
  const std::size_t u = of(samples * c.positions * layer->values("default").A.rows()) * scalar;
  const std::size_t bits = c.drops ? of(samples * ((c.input_width() + 7) / 8)) : 0;
  EXPECT_EQ(pass->tape_bytes(), u + bits);
  if (!held_bytes_known) return;
  const auto large = layer->pass(c.inputs(3000, 3));
  large->forward();
  const auto fresh = layer->pass(c.inputs(samples, 3));
  const std::size_t before = held_bytes();
  fresh->take_tape(*large);
  EXPECT_NEAR(static_cast<double>(held_bytes() - before), static_cast<double>(fresh->tape_bytes()), 2048.0);
}

// A reset layer is a new layer: moments, dropout step, gradients and tape begin anew.
TEST_P(Resetting, MakesANewLayer) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const std::string name = c.name;
  const bool transposed = name.find("Transposed") != std::string::npos;
  for (const auto& [label, given] : configurations(c)) {
    SCOPED_TRACE(label);
    LoraConfig config = given;
    config.fan_in_fan_out = transposed;
    const auto used = c.make({.rank = c.rank, .alpha = 1, .dropout = 0.5, .fan_in_fan_out = transposed}, 3);
    disturb(c, *used, "default", 8);
    const auto pass = pass_over(c, *used, x);
    for (int step = 0; step < 3; ++step) {
      pass->remembered_forward();
      pass->remembered_backward();
      used->step();
    }
    pass->forward();
    used->reset(config, 9);
    EXPECT_THROW(pass->remembered_backward(), StateError);
    pass->renew_gradients();
    EXPECT_THROW(pass->backward(), StateError);
    EXPECT_EQ(used->dropout_step(), 0U);
    const auto fresh = c.make(config, 9);
    const auto fresh_pass = pass_over(c, *fresh, x);
    EXPECT_EQ(used->steps_taken(), fresh->steps_taken());
    EXPECT_TRUE(used->gradients("default").A.isZero(0));
    EXPECT_TRUE(used->gradients("default").B.isZero(0));
    EXPECT_EQ(used->parameter_names(), fresh->parameter_names());
    EXPECT_EQ(used->values("default").scale, 1);
    EXPECT_EQ(used->parameter_bytes(), fresh->parameter_bytes());
    for (int step = 0; step < 3; ++step) {
      for (const auto& p : {pass.get(), fresh_pass.get()}) {
        p->remembered_forward();
        p->remembered_backward();
      }
      EXPECT_TRUE(same_bits(pass->y(), fresh_pass->y())) << step;
      EXPECT_TRUE(same_bits(pass->dx(), fresh_pass->dx())) << step;
      used->step();
      fresh->step();
      const AdapterValues a = used->values("default"), b = fresh->values("default");
      EXPECT_TRUE(same_bits(a.A, b.A)) << step;
      EXPECT_TRUE(same_bits(a.B, b.B)) << step;
      EXPECT_TRUE(same_bits(a.lora_bias, b.lora_bias)) << step;
      EXPECT_TRUE(same_bits(a.magnitude, b.magnitude)) << step;
      EXPECT_TRUE(same_bits(a.bias, b.bias)) << step;
      EXPECT_TRUE(same_bits(a.A0, b.A0)) << step;
    }
    EXPECT_EQ(used->steps_taken(), fresh->steps_taken());
    EXPECT_TRUE(same_bits(used->weight(), c.w0));
  }
}

TEST_P(Resetting, ToRankZeroIsTheFrozenLayerAndARefusalChangesNothing) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const bool transposed = c.name.find("Transposed") != std::string::npos;
  const auto layer = c.make({.rank = c.rank, .alpha = 7, .dropout = 0.5, .fan_in_fan_out = transposed}, 3);
  disturb(c, *layer, "default", 8);
  const auto pass = pass_over(c, *layer, x);
  pass->remembered_forward();
  const Rows y = layer->infer(x);
  EXPECT_THROW(layer->reset({.rank = -1, .fan_in_fan_out = transposed}, 1), ConfigError);
  EXPECT_THROW(layer->reset({.rank = c.rank, .dropout = 1, .fan_in_fan_out = transposed}, 1), ConfigError);
  EXPECT_THROW(layer->reset({.rank = c.rank, .fan_in_fan_out = !transposed}, 1), ConfigError);
  EXPECT_TRUE(same_bits(layer->infer(x), y));
  EXPECT_NO_THROW(pass->remembered_backward());
  layer->reset({.rank = 0, .fan_in_fan_out = transposed}, 1);
  EXPECT_TRUE(layer->names().empty());
  EXPECT_TRUE(same_bits(layer->infer(x), c.make({.rank = 0}, 1)->infer(x)));
  layer->reset({.rank = c.rank, .fan_in_fan_out = transposed}, 3);
  EXPECT_EQ(layer->active(), (Names{"default"}));
}

}  // namespace
}  // namespace lora::training_law_test
