// SPDX-License-Identifier: MIT
#include "sentence_encoder/head.hpp"

#include <gtest/gtest.h>
#include <vector>

#include "common/softmax_loss.hpp"
#include "lora/core/random.hpp"

namespace head_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test

struct Case {
  Case() : head(3, 4), embeddings(5, 4) {
    lora::fill_normal(lora::view_of(embeddings), 0.5, lora::RandomStream(1, 0));
    lora::fill_normal(lora::view_of(head.weight.value), 0.5, lora::RandomStream(1, 1));
    lora::fill_normal(lora::view_of(head.bias.value), 0.5, lora::RandomStream(1, 2));
  }
  double loss() {
    lora::Matrix<float> logits;
    head.infer(embeddings, logits);
    gradient.resize(5, 3);
    return examples::softmax_cross_entropy(logits, labels, gradient);
  }

  Head head;
  lora::Matrix<float> embeddings;
  std::vector<std::uint8_t> labels = {0, 1, 2, 1, 0};
  lora::Matrix<float> gradient;
};

TEST(Head, LogitsFollowTheFormula) {
  Case c;
  lora::Matrix<float> logits;
  c.head.infer(c.embeddings, logits);
  for (Index i = 0; i < 5; ++i) {
    for (Index j = 0; j < 3; ++j) {
      double expected = c.head.bias.value(0, j);
      for (Index k = 0; k < 4; ++k) {
        expected += 2.0 * static_cast<double>(c.embeddings(i, k)) * static_cast<double>(c.head.weight.value(j, k));
      }
      EXPECT_NEAR(logits(i, j), expected, 6 * 6e-8 * 8);  // 6 operations, u = 6e-8, terms up to 8
    }
  }
}

// Central differences with h = 1e-2 are off by h^2 / 6 f''' (f''' below 1 here) and by u |f| / h.
TEST(Head, GradientsAreThoseOfFiniteDifferences) {
  Case c;
  static_cast<void>(c.loss());
  lora::Matrix<float> by_embeddings;
  c.head.backward(c.embeddings, lora::Matrix<float>(c.gradient), by_embeddings);
  const lora::Matrix<float> by_weight = c.head.weight.gradient;
  const lora::Matrix<float> by_bias = c.head.bias.gradient;
  const auto expect_gradient = [&](lora::Matrix<float>& values, const lora::Matrix<float>& gradient) {
    constexpr float h = 1e-2F;
    for (Index i = 0; i < values.size(); ++i) {
      float& value = values.data()[i];
      const float kept = value;
      value = kept + h;
      const double above = c.loss();
      value = kept - h;
      const double below = c.loss();
      value = kept;
      EXPECT_NEAR((above - below) / (2 * static_cast<double>(h)), gradient.data()[i], 1e-4);
    }
  };
  expect_gradient(c.head.weight.value, by_weight);
  expect_gradient(c.head.bias.value, by_bias);
  expect_gradient(c.embeddings, by_embeddings);
}

}  // namespace
}  // namespace head_test
