// SPDX-License-Identifier: MIT
// What a layer allocates: nothing in a steady step; and when memory runs out, nothing has changed.
#include <gtest/gtest.h>
#include <new>
#include <string>
#include <vector>

#include "lora/layers/embedding.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "support/allocation_counter.hpp"
#include "support/bits.hpp"
#include "support/layer_cases.hpp"

namespace lora::layer_allocation_test {
namespace {

using namespace testing;

constexpr Index samples = 6;

LORA_LAYER_LAWS(SteadySteps);
LORA_LAYER_LAWS(OutOfMemory);

constexpr Shortage shortages[] = {Shortage::once, Shortage::lasting};

// Every set of options, and several adapters at once.
std::vector<std::unique_ptr<AnyLayer>> layers_of(const LayerCase& c) {
  std::vector<std::unique_ptr<AnyLayer>> layers;
  for (const auto& [name, config] : configurations(c)) {
    layers.push_back(c.make(config, 5));
    disturb(c, *layers.back(), "default", 8);
  }
  layers.push_back(layer_with(c, company(c)));
  layers.push_back(layer_with(c, company_with_dora(c)));
  layers.push_back(c.make({.rank = 0}, 1));
  return layers;
}

// `body` allocates nothing once it has run, the second time included.
template <class Body>
void expect_steady(const char* what, const Body& body) {
  body();
  EXPECT_EQ(allocations_of([&] {
              body();
              body();
            }),
            0)
      << what;
}

TEST_P(SteadySteps, AllocateNothing) {
  const LayerCase& c = layer_case();
  for (const auto& layer : layers_of(c)) {
    const auto pass = layer->pass(c.inputs(samples, 3));
    const auto columns = layer->pass(c.inputs(samples, 3), Order::columns);
    pass->set_dy(c.output_gradient(samples, 4));
    expect_steady("infer", [&] { pass->infer(); });
    expect_steady("infer by columns", [&] { columns->infer(); });
    expect_steady("forward", [&] { pass->forward(); });
    expect_steady("backward", [&] { pass->backward(); });
    expect_steady("backward without dx", [&] { pass->accumulate(); });
    expect_steady("remembered forward", [&] { pass->remembered_forward(); });
    expect_steady("remembered backward", [&] { pass->remembered_backward(); });
    expect_steady("remembered backward without dx", [&] { pass->remembered_accumulate(); });
    expect_steady("parameters", [&] { static_cast<void>(layer->parameter_count()); });
    expect_steady("a step", [&] {
      layer->zero_grad();
      pass->remembered_forward();
      pass->remembered_backward();
      layer->step();
    });
    layer->eval();
    expect_steady("evaluation", [&] { pass->remembered_forward(); });
  }
}

// A smaller batch fits into what a larger one took.
TEST_P(SteadySteps, ASmallerBatchAllocatesNothing) {
  const LayerCase& c = layer_case();
  const auto layer = layer_with(c, company(c));
  const auto large = layer->pass(c.inputs(samples, 3)), small = layer->pass(c.inputs(2, 3));
  small->set_dy(c.output_gradient(2, 4));
  large->set_dy(c.output_gradient(samples, 4));
  large->remembered_forward();
  large->remembered_backward();
  EXPECT_EQ(allocations_of([&] {
              small->remembered_forward();
              small->remembered_backward();
            }),
            0);
}

TEST_P(SteadySteps, RowsOfBatchesToComeAllocateNothing) {
  const LayerCase& c = layer_case();
  if (!c.by_row) GTEST_SKIP();
  const auto layer = layer_with(c, company_with_dora(c));
  layer->set_row_adapters({"second", "dora", "second", "__base__", "first", "third"}, false);
  const auto pass = layer->pass(c.inputs(samples, 3));
  expect_steady("infer", [&] { pass->infer(); });
}

// All that a caller can see of a layer.
struct Snapshot {
  Names names, active, merged;
  bool training, enabled;
  std::uint64_t dropout_step;
  std::vector<AdapterValues> adapters;
  Rows weight, base_weight, bias, answer;

  Snapshot(const AnyLayer& layer, const Rows& x)
      : names(layer.names()),
        active(layer.active()),
        merged(layer.merged_adapters()),
        training(layer.training()),
        enabled(layer.enabled()),
        dropout_step(layer.dropout_step()),
        weight(layer.weight()),
        base_weight(layer.base_weight()),
        bias(layer.bias()),
        answer(layer.infer(x)) {
    for (const std::string& name : names) adapters.push_back(layer.values(name));
  }
  void expect_same(const Snapshot& now, long n) const {
    EXPECT_EQ(now.names, names) << n;
    EXPECT_EQ(now.active, active) << n;
    EXPECT_EQ(now.merged, merged) << n;
    EXPECT_EQ(now.training, training) << n;
    EXPECT_EQ(now.enabled, enabled) << n;
    EXPECT_EQ(now.dropout_step, dropout_step) << n;
    EXPECT_TRUE(same_bits(now.weight, weight)) << n;
    EXPECT_TRUE(same_bits(now.base_weight, base_weight)) << n;
    EXPECT_TRUE(same_bits(now.bias, bias)) << n;
    EXPECT_TRUE(same_bits(now.answer, answer)) << n;
    ASSERT_EQ(now.adapters.size(), adapters.size()) << n;
    for (std::size_t i = 0; i < adapters.size(); ++i) {
      EXPECT_TRUE(same_bits(now.adapters[i].A, adapters[i].A)) << n;
      EXPECT_TRUE(same_bits(now.adapters[i].B, adapters[i].B)) << n;
      EXPECT_EQ(now.adapters[i].merged, adapters[i].merged) << n;
      EXPECT_EQ(now.adapters[i].scaling, adapters[i].scaling) << n;
    }
  }
};

// Fails the n-th allocation of `call` for every n, until no allocation is left to fail; `unchanged(n)` checks what each
// failure left. A call may do without the memory; `undo` then takes it back.
template <class Call, class Unchanged, class Undo>
void fail_each_allocation(const char* what, Shortage shortage, const Call& call, const Unchanged& unchanged,
                          const Undo& undo) {
  SCOPED_TRACE(what);
  for (long n = 0; n < 2000; ++n) {
    bool threw = false;
    bool failed = false;
    {
      const FailingAllocation failing(n, shortage);
      try {
        call();
      } catch (const std::bad_alloc&) {
        threw = true;
      }
      failed = allocations_left() < 0;
    }
    if (!failed) return;
    threw ? unchanged(n) : undo();
    if (::testing::Test::HasFailure()) return;
  }
  ADD_FAILURE() << "never succeeds";
}

// Neither a failure that later allocations of the same call survive, nor one after which there is no memory at all.
void expect_that_failures_change_nothing(const LayerCase& c, Shortage shortage) {
  const Rows x = c.inputs(3, 3);
  auto adapters = company(c);
  adapters.push_back({"dora", {.rank = c.rank, .alpha = 4, .use_dora = true}});
  auto layer = layer_with(c, adapters);
  const auto changes = [&](const char* what, const auto& call, const auto& undo) {
    const Snapshot before(*layer, x);
    fail_each_allocation(
        what, shortage, call, [&](long n) { before.expect_same(Snapshot(*layer, x), n); }, undo);
  };
  const auto none = [] { ADD_FAILURE() << "succeeds without its memory"; };
  const auto unmerge = [&] { layer->unmerge(); };
  changes(
      "construct", [&] { static_cast<void>(c.make({.rank = c.rank, .use_dora = true}, 1)); }, none);
  changes(
      "add_adapter", [&] { layer->add("more", {.rank = c.rank, .use_dora = true}, 1); }, none);
  changes(
      "set_adapters",
      [&] {
        layer->set_adapters({"more", "first"});
      },
      none);
  changes(
      "set_factors", [&] { layer->set_factors("first", layer->values("first").A, layer->values("third").B); }, none);
  if (c.starts_from_weight) {
    const LoraConfig pissa{.rank = c.rank, .init_lora_weights = InitLoraWeights::pissa};
    changes(
        "pissa", [&] { layer->add("pissa", pissa, 1); }, none);
  }
  if (c.by_row) {
    changes(
        "set_row_adapters",
        [&] {
          layer->set_row_adapters({"first", "third", "second"}, false);
        },
        none);
    layer->clear_row_adapters();
  }
  changes(
      "erase", [&] { layer->erase("more"); }, none);
  layer->set_adapters({"first", "second", "third"});
  if (c.mergeable) {
    changes(
        "merge", [&] { layer->merge(); }, unmerge);
    unmerge();
    changes(
        "merge names",
        [&] {
          layer->merge({"second", "first"});
        },
        unmerge);
    layer->train();
    changes(
        "eval", [&] { layer->eval(); }, [&] { layer->train(); });
    layer->train();
    layer->merge({"first", "second"});
    changes(
        "merge on top", [&] { layer->merge({"third"}); }, [&] { layer->unmerge({"third"}); });
    // What stays is taken out and merged again above or below what comes or goes.
    changes(
        "merge below others", [&] { layer->merge({"dora"}); }, [&] { layer->unmerge({"dora"}); });
    changes(
        "unmerge below others", [&] { layer->unmerge({"dora"}); }, [&] { layer->merge({"dora"}); });
    changes(
        "set_adapters without one below others",
        [&] {
          layer->set_adapters({"second", "third"});
        },
        [&] {
          layer->set_adapters({"first", "second", "third"});
          unmerge();
          layer->merge();
        });
    EXPECT_EQ(layer->merged_adapters(), (Names{"second", "third"}));
    unmerge();
    const auto again = [&] {
      layer = layer_with(c, adapters);
      layer->set_adapters({"first", "second", "third"});
    };
    again();
    changes(
        "merge_and_unload", [&] { layer->merge_and_unload(); }, again);
    EXPECT_TRUE(layer->names().empty());
  }
  layer = layer_with(c, adapters);
  const LoraConfig config{.rank = c.rank, .fan_in_fan_out = c.name.find("Transposed") != std::string::npos};
  changes(
      "reset", [&] { layer->reset(config, 1); }, none);
}

TEST_P(OutOfMemory, ChangesNothing) {
  if (!allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  for (const Shortage shortage : shortages) expect_that_failures_change_nothing(layer_case(), shortage);
}

TEST_P(OutOfMemory, InAPassAddsNothingAndLeavesATapeThatIsRefused) {
  if (!allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const auto layer = layer_with(c, company_with_dora(c));
  const Snapshot before(*layer, x);
  const auto none = [] { ADD_FAILURE() << "succeeds without its memory"; };
  for (const bool remembered : {false, true}) {
    const auto pass = layer->pass(x);
    pass->set_dy(c.output_gradient(samples, 4));
    fail_each_allocation(
        "forward", Shortage::once, [&] { remembered ? pass->remembered_forward() : pass->forward(); },
        [&](long n) {
          before.expect_same(Snapshot(*layer, x), n);
          EXPECT_THROW(remembered ? pass->remembered_backward() : pass->backward(), StateError) << n;
        },
        none);
    const auto twin = layer->pass(x);
    twin->set_dy(c.output_gradient(samples, 4));
    layer->set_dropout_step(0);
    twin->forward();
    twin->backward();
    layer->zero_grad();
    // A backward pass that fails may have added a part; the tape stays good.
    fail_each_allocation(
        "backward", Shortage::once,
        [&] {
          pass->renew_gradients();
          layer->zero_grad();
          remembered ? pass->remembered_backward() : pass->backward();
        },
        [](long) {}, none);
    const GradientValues g = remembered ? layer->gradients("first") : pass->gradients()[0];
    EXPECT_TRUE(same_bits(g.A, twin->gradients()[0].A));
    EXPECT_TRUE(same_bits(pass->dx(), twin->dx()));
    layer->set_dropout_step(before.dropout_step);
  }
}

TEST(SteadyInference, ByChoicesOfTheCallAllocatesNothing) {
  LoraLinear<float> layer(random_matrix<float>(8, 5, 1), {.rank = 2}, 1);
  layer.add_adapter("other", {.rank = 3}, 2);
  const auto x = random_matrix<float>(samples, 5, 3);
  Matrix<float> y(samples, 8);
  Workspace workspace;
  const std::vector<Index> positions{0, 1, -1, 1, 0, 0};
  const std::vector<std::string> names{"default", "other", "__base__", "other", "default", "default"};
  expect_steady("positions", [&] { layer.infer(x, positions, y, workspace); });
  expect_steady("names", [&] { layer.infer(x, names, y, workspace); });
}

template <class Layer>
void expect_all_or_nothing(const Layer& to, const Layer& from) {
  for (const Shortage shortage : shortages) {
    Layer layer = to;
    fail_each_allocation(
        "assignment", shortage, [&] { layer = from; },
        [&](long n) {
          EXPECT_EQ(layer.in_features(), to.in_features()) << n;
          EXPECT_EQ(layer.merged_adapters(), to.merged_adapters()) << n;
          EXPECT_TRUE(same_bits(layer.weight(), to.weight())) << n;
          EXPECT_TRUE(same_bits(layer.base_weight(), to.base_weight())) << n;
        },
        [&] { layer = to; });
    layer.unmerge();
    EXPECT_TRUE(same_bits(layer.weight(), from.base_weight()));
  }
}

// A part of the new layer beside a part of the old one would let unmerge() write outside the weight.
TEST(Assignment, WithoutMemoryLeavesTheFormerLayer) {
  if (!allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  LoraLinear<float> wide(random_matrix<float>(64, 64, 1), {.rank = 2}, 1),
      narrow(random_matrix<float>(8, 8, 2), {.rank = 2}, 2);
  narrow.merge();
  expect_all_or_nothing(wide, narrow);

  // More projections than a word has bits, so that their list needs memory of its own.
  MergedLinear<float> three(random_matrix<float>(24, 8, 1), {true, false, true}, {.rank = 2}, 1),
      many(random_matrix<float>(130, 4, 2), std::vector<bool>(65, true), {.rank = 1}, 2);
  many.merge();
  expect_all_or_nothing(three, many);

  LoraEmbedding<float> words(random_matrix<float>(9, 5, 1), {.rank = 2}, 1),
      letters(random_matrix<float>(4, 3, 2), {.rank = 1}, 2);
  letters.merge();
  expect_all_or_nothing(words, letters);
}

TEST(Swapping, WithoutMemoryChangesNothingHoweverLongTheNames) {
  if (!allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  const std::string name = "a name that is longer than a string keeps within itself";
  LoraLinear<float> layer(random_matrix<float>(8, 5, 1), {.rank = 0}, 1);
  layer.add_adapter(name, {.rank = 2}, 1);
  auto other = layer.make_adapter("another name that is longer than that", {.rank = 3}, 2);
  const auto swap = [&] { layer.swap_adapter(name, other); };
  for (const Shortage shortage : shortages) {
    fail_each_allocation(
        "swap", shortage, swap, [&](long n) { EXPECT_EQ(layer.rank(), 2) << n; }, swap);
    EXPECT_EQ(layer.rank(), 3);
    EXPECT_EQ(layer.adapter_names(), Names{name});
    EXPECT_EQ(other.name(), "another name that is longer than that");
    swap();
  }
}

}  // namespace
}  // namespace lora::layer_allocation_test
