// SPDX-License-Identifier: MIT
// Training lowers the loss, keeps state for what trains alone, and allocates nothing once it runs.
#include "common/trainer.hpp"

#include <gtest/gtest.h>
#include <utility>
#include <vector>

#include "lora/layers/linear.hpp"
#include "support/allocation_counter.hpp"

namespace trainer_test {
namespace {

using examples::Batches;
using examples::DenseLayer;
using examples::ImageSet;
using examples::Mlp;
using examples::Trainer;
using lora::Index;
using lora::testing::allocations_of;
using LoraNetwork = Mlp<lora::LoraLinear<float>>;

/// Images of 4 x 4 whose left or right half is bright: two classes.
ImageSet halves(int count) {
  ImageSet set{4, 4, {}, {}};
  for (int n = 0; n < count; ++n) {
    const int label = n % 2;
    for (int p = 0; p < 16; ++p) {
      const bool bright = (p % 4 < 2) == (label == 0);
      set.pixels.push_back(static_cast<std::uint8_t>(bright ? 180 + (n * 7 + p * 5) % 60 : (n * 3 + p * 11) % 60));
    }
    set.labels.push_back(static_cast<std::uint8_t>(label));
  }
  return set;
}

Mlp<DenseLayer<float>> dense_network() { return examples::random_mlp<float>({16, 12, 2}, 4); }

LoraNetwork lora_network(Index rank) {
  std::vector<lora::LoraLinear<float>> layers;
  const auto base = dense_network();
  for (const auto& layer : base.layers()) {
    layers.emplace_back(layer.weight(), layer.bias(), lora::LoraConfig{.rank = rank, .alpha = 4}, layers.size());
  }
  return LoraNetwork(std::move(layers));
}

template <class Network>
void expect_training_separates_halves(Network network) {
  const ImageSet set = halves(64);
  int steps = 0;
  const auto curve =
      examples::train(network, set, {.epochs = 12, .batch_size = 16, .learning_rate = 0.02}, [&] { ++steps; });
  EXPECT_EQ(steps, 12 * 4);
  ASSERT_EQ(curve.size(), 48U);
  EXPECT_DOUBLE_EQ(curve.back().epoch, 12.0);
  EXPECT_LT(curve.back().loss, curve.front().loss / 10);
  EXPECT_EQ(examples::accuracy(examples::logits_of(network, set), set.labels), 1.0);
}

TEST(Train, SeparatesTwoClassesWithDenseLayers) { expect_training_separates_halves(dense_network()); }
TEST(Train, SeparatesTwoClassesWithLoraLayers) { expect_training_separates_halves(lora_network(2)); }

TEST(Train, IsTheSameForTheSameSeed) {
  const auto logits = [](std::uint64_t seed) {
    const ImageSet set = halves(64);
    auto network = lora_network(2);
    examples::train(network, set, {.epochs = 2, .batch_size = 16, .seed = seed}, [] {});
    return examples::logits_of(network, set);
  };
  EXPECT_EQ(logits(1), logits(1));
  EXPECT_NE(logits(1), logits(2));
}

TEST(Train, LeavesTheFrozenWeightAlone) {
  auto network = lora_network(2);
  examples::train(network, halves(64), {.epochs = 2, .batch_size = 16}, [] {});
  const auto base = dense_network();
  for (std::size_t l = 0; l < network.layers().size(); ++l) {
    EXPECT_EQ(network.layers()[l].weight(), base.layers()[l].weight());
  }
}

template <class Layer>
examples::MemoryUse memory_after_a_step(Mlp<Layer> network, std::size_t parameters) {
  const ImageSet set = halves(16);
  Batches batches(set, 8, 0);
  Trainer<Layer> trainer(network, {});
  EXPECT_EQ(trainer.memory().optimizer_state, 0U);
  trainer.step(batches.next(), 1e-3);
  EXPECT_EQ(trainer.parameter_count(), static_cast<Index>(parameters));
  const auto memory = trainer.memory();
  EXPECT_EQ(memory.gradients, parameters * sizeof(float));
  EXPECT_EQ(memory.optimizer_state, 2 * parameters * sizeof(float));
  return memory;
}

TEST(Trainer, KeepsGradientsAndStateForAllWeightsOfDenseLayers) {
  const auto memory = memory_after_a_step(dense_network(), 16 * 12 + 12 + 12 * 2 + 2);
  const std::size_t batch = 8 * 16 * sizeof(float) + 8;
  EXPECT_EQ(memory.activations, batch + 2 * 8 * (12 + 2) * sizeof(float));
}

TEST(Trainer, KeepsGradientsAndStateForTheFactorsAloneOfLoraLayers) {
  const auto memory = memory_after_a_step(lora_network(3), 3 * (16 + 12) + 3 * (12 + 2));
  const std::size_t batch = 8 * 16 * sizeof(float) + 8;
  EXPECT_EQ(memory.activations, batch + 2 * 8 * (12 + 2) * sizeof(float) + 2 * 8 * 3 * sizeof(float));
}

template <class Layer>
void expect_no_allocation_in_a_steady_step(Mlp<Layer> network) {
  const ImageSet set = halves(64);
  Batches batches(set, 16, 0);
  Trainer<Layer> trainer(network, {});
  trainer.step(batches.next(), 1e-3);
  EXPECT_EQ(allocations_of([&] {
              for (int step = 0; step < 6; ++step) trainer.step(batches.next(), 1e-3);  // into the second epoch
            }),
            0);
}

TEST(Trainer, AllocatesNothingInASteadyStepWithDenseLayers) { expect_no_allocation_in_a_steady_step(dense_network()); }
TEST(Trainer, AllocatesNothingInASteadyStepWithLoraLayers) { expect_no_allocation_in_a_steady_step(lora_network(4)); }

TEST(LossCurve, AveragesOverWindows) {
  examples::LossCurve curve(4, 2);
  for (const double loss : {4.0, 2.0, 1.0, 3.0, 5.0}) curve.add(loss);
  ASSERT_EQ(curve.points().size(), 2U);
  EXPECT_DOUBLE_EQ(curve.points()[0].epoch, 0.5);
  EXPECT_DOUBLE_EQ(curve.points()[0].loss, 3.0);
  EXPECT_DOUBLE_EQ(curve.points()[1].loss, 2.0);
}

}  // namespace
}  // namespace trainer_test
