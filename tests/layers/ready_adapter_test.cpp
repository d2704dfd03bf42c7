// SPDX-License-Identifier: MIT
// Adapters that were made elsewhere: a layer takes those it could have made, and no others.
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/layers/conv.hpp"
#include "lora/layers/embedding.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "support/bits.hpp"
#include "support/message_of.hpp"
#include "support/random_matrix.hpp"

namespace lora::ready_adapter_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

constexpr LoraConfig dora{.rank = 2, .alpha = 4, .use_dora = true};

LoraLinear<double> linear() {
  LoraLinear<double> layer(random_matrix<double>(6, 8, 1), {.rank = 2, .alpha = 4}, 1);
  layer.set_factors(random_matrix<double>(2, 8, 2), random_matrix<double>(6, 2, 3));
  return layer;
}

// Its norms are those of W0, which a merged layer does not show.
TEST(ReadyAdapter, WithDoraIsRefusedWhileAnotherOneIsMerged) {
  auto twin = linear();
  const auto adapter = twin.make_adapter("dora", dora, 7);
  auto layer = linear();
  layer.merge();
  EXPECT_EQ(message_of<StateError>([&] { layer.add_adapter(adapter); }),
            "LoraLinear::add_adapter: layer: expected nothing merged (call train() or unmerge() first), got adapter "
            "\"default\" merged");
  layer.add_adapter("plain", {.rank = 1}, 2);
  auto other = adapter;
  EXPECT_THROW(layer.swap_adapter("plain", other), StateError);
  layer.unmerge();
  layer.add_adapter(adapter);
  twin.add_adapter(adapter);
  layer.set_adapter("dora");
  twin.set_adapter("dora");
  const auto x = random_matrix<double>(5, 8, 4);
  EXPECT_TRUE(same_bits(layer.infer(x), twin.infer(x)));
}

// Only a layer whose adapters adapt all outputs of one product can subtract a start.
TEST(ReadyAdapter, WithAStartIsRefusedWhereNoneIsSubtracted) {
  auto layer = linear();
  const auto adapter = layer.make_adapter("p", {.rank = 2, .init_lora_weights = InitLoraWeights::pissa}, 1);
  EXPECT_NO_THROW(layer.add_adapter(adapter));

  const Matrix<double> w = layer.base_weight();
  LoraConv1d<double> conv(w, {.in_channels = 8, .out_channels = 6, .kernel = {1}}, {.rank = 2}, 1);
  EXPECT_EQ(message_of<ConfigError>([&] { conv.add_adapter(adapter); }),
            "LoraConv::add_adapter: adapter.start: expected none in a layer of this kind, got one of pissa or olora");
  EXPECT_EQ(conv.adapter_count(), 1);

  LoraEmbedding<double> table(w.transpose(), {.rank = 2}, 1);
  EXPECT_THROW(table.add_adapter(adapter), ConfigError);

  MergedLinear<double> stacked(w, {false, true}, {.rank = 2}, 1);
  LoraAdapter<double> block("test", "p", adapter.config(), 1, {adapter.A, adapter.B.topRows(3)});
  block.start = {adapter.A, adapter.B.topRows(3)};
  EXPECT_THROW(stacked.add_adapter(block), ConfigError);
}

TEST(ReadyAdapter, WithOptionsThatTheLayerDoesNotHaveIsRefused) {
  LoraConv1d<double> conv(random_matrix<double>(4, 2, 1),
                          {.in_channels = 4, .out_channels = 4, .kernel = {1}, .groups = 2}, {.rank = 2}, 1);
  const LoraAdapter<double> odd("test", "odd", {.rank = 3}, 1, {random_matrix<double>(3, 2, 1), Matrix<double>(4, 1)});
  EXPECT_EQ(message_of<ConfigError>([&] { conv.add_adapter(odd); }),
            "LoraConv::add_adapter: rank: expected a multiple of 2 groups, got 3");

  LoraEmbedding<double> table(random_matrix<double>(9, 8, 1), {.rank = 2}, 1);
  LoraAdapter<double> biased("test", "biased", {.rank = 2, .lora_bias = true}, 1,
                             {random_matrix<double>(2, 9, 1), random_matrix<double>(8, 2, 1)});
  biased.lora_bias = RowVector<double>::Ones(8);
  EXPECT_EQ(message_of<ConfigError>([&] { table.add_adapter(biased); }),
            "LoraEmbedding::add_adapter: lora_bias: expected false for an embedding, got true");
}

// The layer's own orientation holds, whatever that of the layer it was made by.
TEST(ReadyAdapter, OfALayerStoredTheOtherWayRoundFits) {
  auto layer = linear();
  const Matrix<double> turned = layer.base_weight().transpose();
  LoraLinear<double> other(turned, {.rank = 0, .fan_in_fan_out = true}, 1);
  layer.add_adapter(other.make_adapter("turned", {.rank = 2}, 1));
  EXPECT_TRUE(layer.has_adapter("turned"));
}

}  // namespace
}  // namespace lora::ready_adapter_test
