// LoraEmbedding against the numbers PEFT computed, through the public interface.
#include <algorithm>
#include <cstdint>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/layers/embedding.hpp"
#include "support/golden.hpp"

namespace lora {
namespace {

using testing::Golden;

// Relative to the largest element: both sides round sums of up to 31 products of numbers of that size.
void expect_close(const Matrix<double>& ours, const Matrix<double>& theirs, const std::string& what) {
  ASSERT_EQ(ours.rows(), theirs.rows()) << what;
  ASSERT_EQ(ours.cols(), theirs.cols()) << what;
  EXPECT_LE((ours - theirs).cwiseAbs().maxCoeff(), 1e-12 * std::max(1.0, theirs.cwiseAbs().maxCoeff())) << what;
}

class EmbeddingGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(EmbeddingGolden, AgreesWithPeft) {
  const auto golden = Golden::load(testing::golden_path(GetParam()));
  const auto& lora = golden.description().at("lora");
  const bool dora = lora.at("use_dora");
  LoraEmbedding<double> layer(golden.matrix("base.weight"),
                              {.rank = lora.at("r"), .alpha = lora.at("lora_alpha"), .use_dora = dora}, 1);
  layer.set_factors(golden.matrix("param.lora_embedding_A"), golden.matrix("param.lora_embedding_B"));
  if (dora) layer.set_magnitude(golden.matrix("param.lora_magnitude_vector.weight"));
  const Matrix<std::int64_t> ids = golden.matrix<std::int64_t>("x");
  expect_close(layer.infer(ids), golden.matrix("y"), "y of infer");
  expect_close(layer.forward(ids), golden.matrix("y"), "y");
  layer.backward(golden.matrix("grad_y"));
  expect_close(layer.gradients().A, golden.matrix("grad.lora_embedding_A"), "grad A");
  expect_close(layer.gradients().B, golden.matrix("grad.lora_embedding_B"), "grad B");
  if (dora) {
    expect_close(layer.gradients().magnitude, golden.matrix("grad.lora_magnitude_vector.weight"), "grad magnitude");
  }
  expect_close(layer.delta_weight(), golden.matrix("delta"), "delta");
  layer.eval();
  expect_close(layer.weight(), golden.matrix("merged_weight"), "merged_weight");
  expect_close(layer.infer(ids), golden.matrix("y_merged"), "y_merged");
}

INSTANTIATE_TEST_SUITE_P(Cases, EmbeddingGolden,
                         ::testing::Values("embedding_10x6_r2", "embedding_31x16_r4", "embedding_10x6_r2_dora",
                                           "embedding_31x16_r4_dora"),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace lora
