// One convolution, many threads. Run under ThreadSanitizer.
#include <gtest/gtest.h>
#include <thread>
#include <vector>

#include "lora/layers/conv.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

TEST(ConvConcurrent, ManyThreadsInferAndTrainOnOneLayer) {
  constexpr ImageExtents<2> extents{7, 6};
  const LoraConv2d<float> layer(
      random_matrix<float>(9, 45, 1), {.in_channels = 5, .out_channels = 9, .kernel = {3, 3}, .padding = {1, 1}},
      {.rank = 3, .dropout = 0.2, .use_dora = true, .init_lora_weights = InitLoraWeights::random}, 2);
  const auto x = random_matrix<float>(3, 5 * 42, 3);
  const auto dy = random_matrix<float>(3, 9 * 42, 4);
  struct Results {
    Matrix<float> inferred{3, 9 * 42}, y{3, 9 * 42}, dx{3, 5 * 42};
    LoraGradients<float> gradients;
  };
  const auto run = [&](Results& r) {
    Workspace workspace;
    ConvRecord<float, 2> record;
    r.gradients = layer.make_gradients();
    layer.infer(x, extents, r.inferred, workspace);
    layer.forward(x, extents, record, r.y, workspace);
    layer.backward(x, record, dy, r.gradients, r.dx, workspace);
  };
  Results expected;
  run(expected);
  std::vector<Results> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) threads.emplace_back([&run, &result] { run(result); });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) {
    EXPECT_TRUE(same_bits(result.inferred, expected.inferred));
    EXPECT_TRUE(same_bits(result.y, expected.y));
    EXPECT_TRUE(same_bits(result.dx, expected.dx));
    EXPECT_TRUE(same_bits(result.gradients.A, expected.gradients.A));
    EXPECT_TRUE(same_bits(result.gradients.magnitude, expected.gradients.magnitude));
  }
}

}  // namespace
}  // namespace lora
