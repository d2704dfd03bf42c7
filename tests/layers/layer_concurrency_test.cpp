// SPDX-License-Identifier: MIT
// One layer, many threads: const functions are reentrant.
#include <gtest/gtest.h>
#include <memory>
#include <thread>
#include <vector>

#include "support/bits.hpp"
#include "support/layer_cases.hpp"
#include "support/thread_executor.hpp"

namespace lora::layer_concurrency_test {
namespace {

using namespace testing;

constexpr Index samples = 5;
constexpr int threads = 4;

LORA_LAYER_LAWS(LayerThreads);

template <class Body>
void on_threads(const Body& body) {
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) running.emplace_back([&body, t] { body(t); });
  for (auto& thread : running) thread.join();
}

TEST_P(LayerThreads, ConcurrentInferenceGivesTheBitsOfOne) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  auto adapters = company(c);
  adapters.push_back({"dora", {.rank = c.rank, .alpha = 4, .use_dora = true}});
  for (const bool merges : {false, true}) {
    if (merges && !c.mergeable) continue;
    const auto layer = layer_with(c, adapters);
    if (merges) layer->eval();
    const Rows y = layer->infer(x);
    std::vector<std::unique_ptr<LayerPass>> passes;
    for (int t = 0; t < threads; ++t) passes.push_back(layer->pass(x, t % 2 == 0 ? Order::rows : Order::columns));
    on_threads([&](int t) {
      for (int i = 0; i < 4; ++i) {
        passes[static_cast<std::size_t>(t)]->infer();
        EXPECT_TRUE(same_bits(passes[static_cast<std::size_t>(t)]->y(), y));
        EXPECT_TRUE(same_bits(layer->infer(x), y));
        EXPECT_EQ(layer->base_weight().rows(), c.w0.rows());
      }
    });
  }
}

TEST_P(LayerThreads, ConcurrentRowsChooseTheirAdapters) {
  const LayerCase& c = layer_case();
  if (!c.by_row) GTEST_SKIP();
  const Rows x = c.inputs(samples, 3);
  const auto layer = layer_with(c, company_with_dora(c));
  const Names choices = {"first", "dora", "first", "__base__", "second"};
  const Rows y = layer->infer(x, choices);
  layer->set_row_adapters(choices, false);
  on_threads([&](int) {
    for (int i = 0; i < 4; ++i) {
      EXPECT_TRUE(same_bits(layer->infer(x, choices), y));
      EXPECT_TRUE(same_bits(layer->infer(x), y));
    }
  });
}

TEST_P(LayerThreads, ConcurrentTrainingPassesHaveTapesAndGradientsOfTheirOwn) {
  const LayerCase& c = layer_case();
  const auto layer = layer_with(c, company_with_dora(c));
  std::vector<std::unique_ptr<LayerPass>> serial, concurrent;
  for (int t = 0; t < threads; ++t) {
    for (auto* passes : {&serial, &concurrent}) {
      passes->push_back(layer->pass(c.inputs(samples, static_cast<std::uint64_t>(t))));
      passes->back()->set_dy(c.output_gradient(samples, static_cast<std::uint64_t>(t)));
      passes->back()->set_position(3, samples * t);
    }
  }
  ThreadExecutor executor(2);
  concurrent[0]->set_executor(executor);
  for (const auto& pass : serial) {
    pass->forward();
    pass->backward();
  }
  on_threads([&](int t) {
    concurrent[static_cast<std::size_t>(t)]->forward();
    concurrent[static_cast<std::size_t>(t)]->backward();
  });
  for (std::size_t t = 0; t < threads; ++t) {
    EXPECT_TRUE(same_bits(concurrent[t]->y(), serial[t]->y()));
    EXPECT_TRUE(same_bits(concurrent[t]->dx(), serial[t]->dx()));
    for (std::size_t i = 0; i < 5; ++i) {
      EXPECT_TRUE(same_bits(concurrent[t]->gradients()[i].A, serial[t]->gradients()[i].A));
      EXPECT_TRUE(same_bits(concurrent[t]->gradients()[i].B, serial[t]->gradients()[i].B));
    }
  }
}

}  // namespace
}  // namespace lora::layer_concurrency_test
