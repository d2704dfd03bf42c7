// SPDX-License-Identifier: MIT
// Without memory at any allocation of any call: then everything of a model is as it was, and the call can be repeated.
#include <gtest/gtest.h>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "support/allocation_counter.hpp"
#include "support/model_network.hpp"

namespace lora::testing::lora_model_memory_test {
namespace {

using Model = LoraModel<double>;

const LoraModelConfig plain{.lora = {.rank = 2, .alpha = 3},
                            .target_modules = {"embed", "grouped", "conv", "block.qkv", "block.out"}};
const LoraModelConfig whole{.lora = {.rank = 2, .alpha = 3, .use_dora = true, .bias = BiasMode::all},
                            .target_modules = {"block.qkv", "block.out", "block.gate"},
                            .modules_to_save = {"head"}};
const LoraModelConfig residual{.lora = {.rank = 2, .alpha = 3, .init_lora_weights = InitLoraWeights::pissa},
                               .target_modules = {"block.out", "block.gate"}};

// Two adapters with values, "first" active.
void two_adapters(ModelNetwork& network) {
  network.model.inject(whole, 1, "second");
  network.randomize(100);
  network.model.inject(plain, 2, "first");
  network.randomize(200);
}

// Fails every allocation of `call` in turn. `call` takes a ModelNetwork.
template <class Prepare, class Call>
void survives(const Prepare& prepare, const Call& call) {
  if (!allocations_can_fail) GTEST_SKIP() << "allocations cannot fail here";
  ModelNetwork undisturbed;
  prepare(undisturbed);
  call(undisturbed);
  const Observation wanted = observe(undisturbed);

  auto network = std::make_unique<ModelNetwork>();
  prepare(*network);
  const Observation before = observe(*network);
  long n = 0;
  for (;; ++n) {
    bool failed = true;
    try {
      const FailingAllocation failing(n);
      call(*network);
      failed = allocations_left() < 0;
    } catch (const std::bad_alloc&) {
      ASSERT_TRUE(same(before, observe(*network))) << "allocation " << n;
      continue;
    }
    ASSERT_TRUE(same(wanted, observe(*network))) << "allocation " << n;
    if (!failed) break;
    network = std::make_unique<ModelNetwork>();  // the call got by without that memory
    prepare(*network);
  }
  EXPECT_GT(n, 0);
}

TEST(LoraModelMemory, InjectingTheFirstAdapter) {
  survives([](ModelNetwork& /*network*/) {}, [](ModelNetwork& network) { network.model.inject(plain, 1); });
}

TEST(LoraModelMemory, InjectingBesideOthers) {
  survives(two_adapters, [](ModelNetwork& network) { network.model.inject(whole, 3, "third"); });
}

TEST(LoraModelMemory, InjectingAPartOfTheWeights) {
  survives(two_adapters, [](ModelNetwork& network) { network.model.inject(residual, 3, "third"); });
}

TEST(LoraModelMemory, Loading) {
  ModelNetwork source;
  two_adapters(source);
  const AdapterWeights<double> weights = source.model.weights("second");
  survives(two_adapters, [&](ModelNetwork& network) { network.model.load(whole, weights, 3, "third"); });
}

TEST(LoraModelMemory, ChoosingAdapters) {
  survives(two_adapters, [](ModelNetwork& network) { network.model.set_adapters({"second", "first"}); });
  survives(two_adapters, [](ModelNetwork& network) { network.model.set_adapter("second"); });
  survives(two_adapters, [](ModelNetwork& network) { network.model.set_adapters({}); });
}

// Choosing an adapter costs the same whatever its size: positions and names change, and what a module to save holds
// changes place.
TEST(LoraModelMemory, ChoosingAnAdapterMovesNoNumber) {
  using Addresses = std::vector<const double*>;
  const auto addresses = [](const ModelNetwork& network) {
    Addresses all;
    for (const char* name : {"first", "second"}) {
      const auto& adapter = network.out.adapter(name);
      all.insert(all.end(), {adapter.A.data(), adapter.B.data(), adapter.bias.data(), adapter.magnitude.data()});
    }
    return all;
  };
  std::vector<long> counts;
  for (const Index rank : {1, 4}) {
    LoraModelConfig config = whole;
    config.lora.rank = rank;
    ModelNetwork network;
    network.model.inject(config, 1, "first");
    const double* const of_first = network.head.value.data();
    network.model.inject(config, 2, "second");
    const double* const of_second = network.head.value.data();
    EXPECT_NE(of_first, of_second);
    const Addresses before = addresses(network);
    for (int round = 0; round < 2; ++round) {
      counts.push_back(allocations_of([&] { network.model.set_adapter("first"); }));
      EXPECT_EQ(network.head.value.data(), of_first);
      counts.push_back(allocations_of([&] { network.model.set_adapter("second"); }));
      EXPECT_EQ(network.head.value.data(), of_second);
    }
    EXPECT_EQ(addresses(network), before);
  }
  for (const long count : counts) EXPECT_EQ(count, counts.front());
}

// The same of a layer, which has its adapters exchanged or chosen.
TEST(LayerMemory, ExchangingAndChoosingAdaptersMovesNoNumber) {
  std::vector<long> exchanging;
  for (const Index width : {4, 64}) {
    LoraLinear<double> layer(random_matrix<double>(width, width, 1), LoraConfig{.rank = 2}, std::uint64_t{1});
    layer.add_adapter("other", {.rank = 4}, 2);
    auto given = layer.make_adapter("given", {.rank = 3}, 3);
    const auto data = [](const auto& adapter) { return std::pair(adapter.A.data(), adapter.B.data()); };
    const auto of_default = data(layer.adapter("default"));
    const auto of_given = data(given);
    exchanging.push_back(allocations_of([&] { layer.swap_adapter("default", given); }));
    EXPECT_EQ(data(layer.adapter("default")), of_given);
    EXPECT_EQ(data(given), of_default);
    const auto of_other = data(layer.adapter("other"));
    EXPECT_EQ(allocations_of([&] { layer.set_adapter("other"); }), 1);  // a list of one position
    EXPECT_EQ(data(layer.adapter("other")), of_other);
    EXPECT_EQ(data(layer.adapter("default")), of_given);
  }
  EXPECT_EQ(exchanging.front(), exchanging.back());
}

TEST(LoraModelMemory, DeletingAdapters) {
  survives(two_adapters, [](ModelNetwork& network) { network.model.delete_adapter("first"); });
  survives(two_adapters, [](ModelNetwork& network) { network.model.delete_adapter("second"); });
  const auto both_active = [](ModelNetwork& network) {
    two_adapters(network);
    network.model.set_adapters({"second", "first"});
  };
  survives(both_active, [](ModelNetwork& network) { network.model.delete_adapter("second"); });
}

TEST(LoraModelMemory, Merging) {
  survives(two_adapters, [](ModelNetwork& network) { network.model.merge(); });
  survives(two_adapters, [](ModelNetwork& network) { network.model.eval(); });
  const auto one_merged = [](ModelNetwork& network) {
    two_adapters(network);
    network.model.set_adapters({"first", "second"});
    network.model.merge({"first"});
  };
  survives(one_merged, [](ModelNetwork& network) { network.model.merge({"second"}); });  // DoRA goes below
}

TEST(LoraModelMemory, Unmerging) {
  const auto merged = [](ModelNetwork& network) {
    two_adapters(network);
    network.model.set_adapters({"first", "second"});
    network.model.merge({"second", "first"});
  };
  survives(merged, [](ModelNetwork& network) { network.model.unmerge({"first"}); });
  survives(merged, [](ModelNetwork& network) { network.model.unmerge({"second"}); });
  survives(merged, [](ModelNetwork& network) { network.model.train(); });
}

TEST(LoraModelMemory, MergingForGood) {
  survives(two_adapters, [](ModelNetwork& network) { network.model.merge_and_unload(); });
  const auto evaluated = [](ModelNetwork& network) {
    two_adapters(network);
    network.model.eval();
  };
  survives(evaluated, [](ModelNetwork& network) { network.model.merge_and_unload(); });
  const auto both = [](ModelNetwork& network) {
    two_adapters(network);
    network.model.set_adapters({"first", "second"});
  };
  survives(both, [](ModelNetwork& network) { network.model.merge_and_unload(); });
}

TEST(LoraModelMemory, ChoosingByRow) {
  survives(two_adapters, [](ModelNetwork& network) {
    network.model.set_row_adapters({"first", "second", "__base__", "first"});
  });
}

TEST(LoraModelMemory, Registering) {
  if (!allocations_can_fail) GTEST_SKIP() << "allocations cannot fail here";
  ModelNetwork::Linear extra(random_matrix<double>(4, 4, 1), LoraConfig{.rank = 0}, ModelNetwork::no_seed);
  for (long n = 0;; ++n) {
    ModelNetwork network;
    const auto names = network.model.module_names();
    try {
      const FailingAllocation failing(n);
      network.model.add("a.name.too.long.for.a.small.string", extra);
      if (allocations_left() >= 0) break;
    } catch (const std::bad_alloc&) {
      ASSERT_EQ(network.model.module_names(), names) << n;
    }
    ASSERT_NO_THROW(network.model.add("a.name.too.long.for.a.small.string", extra)) << n;
  }
}

TEST(LoraModelMemory, TakingAdaptersAwayNeedsNone) {
  ModelNetwork network;
  const auto before = network.weights();
  two_adapters(network);
  network.model.set_adapters({"first", "second"});
  network.model.set_row_adapters({"first", "second"});
  network.model.clear_row_adapters();
  network.model.merge({"second", "first"});
  EXPECT_EQ(allocations_of([&] { network.model.unload(); }), 0);
  EXPECT_TRUE(same_bits(network.weights(), before));
  EXPECT_EQ(allocations_of([&] { network.model.unload(); }), 0);
  static_assert(noexcept(network.model.unload())&& noexcept(network.model.unmerge())&& noexcept(
      network.model.zero_grad())&& noexcept(network.model.disable_adapters()));
}

}  // namespace
}  // namespace lora::testing::lora_model_memory_test
