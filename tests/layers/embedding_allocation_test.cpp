// A steady step of a tied embedding allocates nothing. Counted by linear_allocation_test.cpp's hooks.
#include <gtest/gtest.h>
#include <vector>

#include "lora/layers/embedding.hpp"
#include "lora/optim/adamw.hpp"
#include "support/allocation_count.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::allocations_of;
using testing::random_matrix;

TEST(EmbeddingAllocation, AllocationsAreCounted) {
  EXPECT_GE(allocations_of([] { Matrix<float>::Random(9, 9).eval(); }), 1);
}

TEST(EmbeddingAllocation, ASteadyTrainingStepAllocatesNothing) {
  for (const bool dora : {false, true}) {
    LoraEmbedding<float> layer(random_matrix<float>(300, 70, 1), {.rank = 8, .use_dora = dora}, 1, 0);
    AdamW<float> optimizer;
    const std::vector<int> ids(65, 17);
    const auto dlogits = random_matrix<float>(65, 300, 3);
    Matrix<float> hidden(65, 70), logits(65, 300), dhidden(65, 70);
    const auto parameters = layer.parameters();  // their names are too long for a string without memory of its own
    const auto step = [&] {
      layer.forward(ids, hidden);
      layer.project_forward(hidden, logits);
      layer.project_backward(dlogits, dhidden);
      layer.backward(dhidden);
      optimizer.step(parameters);
      layer.zero_grad();
    };
    step();
    EXPECT_EQ(allocations_of([&] {
                step();
                step();
              }),
              0)
        << dora;
  }
}

TEST(EmbeddingAllocation, SteadyInferenceAllocatesNothingMergedOrNot) {
  LoraEmbedding<double> layer(random_matrix<double>(300, 70, 1), {.rank = 8, .use_dora = true}, 1);
  const std::vector<int> ids = {1, 299, 1};
  Matrix<double> y(3, 70), logits(3, 300);
  Workspace workspace;
  const auto run = [&] {
    layer.infer(ids, y, workspace);
    layer.project(y, logits, workspace);
  };
  for (const bool merged : {false, true}) {
    if (merged) layer.merge();
    run();
    EXPECT_EQ(allocations_of(run), 0);
  }
}

// 4 N r bytes of U; with DoRA Z (or x) and the norms beside it.
TEST(EmbeddingMemory, ARecordHoldsUAndWithDoraWhatTheMagnitudeMultiplies) {
  for (const bool dora : {false, true}) {
    const LoraEmbedding<float> layer(random_matrix<float>(300, 70, 1), {.rank = 8, .use_dora = dora}, 1);
    LoraRecord<float> record;
    ProjectionRecord<float> projection;
    Workspace workspace;
    Matrix<float> y(5, 70), logits(5, 300);
    layer.forward(std::vector<int>{1, 2, 3, 4, 5}, record, y, workspace);
    layer.project_forward(y, projection, logits, workspace);
    const std::size_t expected = 4 * (5 * 8 + (dora ? 6 * 70 : 0));
    EXPECT_EQ(record.bytes(), expected);
    EXPECT_EQ(projection.bytes(), expected);
  }
}

}  // namespace
}  // namespace lora
