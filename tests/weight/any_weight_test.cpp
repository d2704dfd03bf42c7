// SPDX-License-Identifier: MIT
// A weight whose kind is chosen at run time behaves as the one it holds.
#include "lora/weight/any_weight.hpp"

#include <gtest/gtest.h>
#include <utility>

#include "lora/layers/linear.hpp"
#include "lora/weight/quantized.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace any_weight_test {
namespace {

using testing::random_matrix;
using testing::same_bits;
using Layer = LoraLinear<float, AnyWeight<float>>;

const LoraConfig config{.rank = 2, .alpha = 4, .init_lora_weights = InitLoraWeights::random};

template <class Format>
QuantizedWeight<Format> quantized(const Matrix<float>& values) {
  return QuantizedWeight<Format>::quantize(view_of(values));
}

TEST(AnyWeight, ALayerAnswersAsOverTheWeightItHolds) {
  const auto w = random_matrix<float>(20, 32, 1);
  const auto x = random_matrix<float>(5, 32, 2);
  EXPECT_TRUE(same_bits(Layer(w, config, 3).infer(x), LoraLinear<float>(w, config, 3).infer(x)));
  const LoraLinear<float, QuantizedWeight<formats::Q8_0>> known(quantized<formats::Q8_0>(w), config, 3);
  EXPECT_TRUE(same_bits(Layer(quantized<formats::Q8_0>(w), config, 3).infer(x), known.infer(x)));
}

// Its elements may be of 16 bits, which the type of the layer does not say.
TEST(AnyWeight, MergesIfTheWeightItHoldsDoes) {
  const auto w = random_matrix<float>(20, 32, 1);
  for (const bool half : {false, true}) {
    Layer layer(half ? AnyWeight<float>(quantized<formats::BF16>(w)) : AnyWeight<float>(view_of(w)), config, 3);
    const Matrix<float> before = layer.weight();
    layer.eval();
    EXPECT_TRUE(layer.merged());
    EXPECT_FALSE(same_bits(layer.weight(), before));
    layer.train();
    EXPECT_TRUE(same_bits(layer.weight(), before));
  }
  Layer blocks(quantized<formats::Q4_0>(w), config, 3);
  blocks.eval();
  EXPECT_FALSE(blocks.merged());
  EXPECT_THROW(blocks.merge(), StateError);
}

TEST(AnyWeight, WithoutAWeightIsEmpty) {
  const auto values = random_matrix<float>(3, 2, 1);
  AnyWeight<float> weight(view_of(values));
  const AnyWeight<float> taken = std::move(weight);
  EXPECT_EQ(taken.out_features(), 3);
  EXPECT_EQ(weight.out_features(), 0);  // NOLINT(bugprone-use-after-move): what it promises
  EXPECT_EQ(AnyWeight<float>().bytes(), 0U);
}

}  // namespace
}  // namespace any_weight_test
}  // namespace lora
