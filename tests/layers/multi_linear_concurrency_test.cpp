// One layer of several adapters, many threads. Run under ThreadSanitizer.
#include <gtest/gtest.h>
#include <string>
#include <thread>
#include <vector>

#include "layers/multi_linear_kinds.hpp"
#include "support/bits.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::random_config;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;

constexpr Index d = 70, k = 90, n = 21;

MultiLoraLinear<float> a_layer(double dropout) {
  MultiLoraLinear<float> layer(random_matrix<float>(d, k, 1), random_vector<float>(d, 2));
  LoraConfig with_bias = random_config(4, dropout);
  with_bias.lora_bias = true;
  layer.add_adapter("a", with_bias, 1);
  layer.add_adapter("b", random_config(3, dropout), 2);
  layer.set_lora_bias("a", random_vector<float>(d, 3));
  layer.set_adapters({"a", "b"});
  return layer;
}

template <class Body>
void run_threads(int count, const Body& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < count; ++t) threads.emplace_back([&body, t] { body(t); });
  for (auto& thread : threads) thread.join();
}

TEST(MultiLinearConcurrent, ManyThreadsInferOnOneLayer) {
  for (const bool merged : {false, true}) {
    auto made = a_layer(0);
    if (merged) made.merge({"a"});
    const auto& layer = made;
    const auto x = random_matrix<float>(n, k, 3);
    const Matrix<float> expected = layer.infer(x);
    std::vector<int> agreed(4, 0);
    run_threads(4, [&](int t) {
      Workspace workspace;
      Matrix<float> y(n, d);
      for (int i = 0; i < 20; ++i) layer.infer(x, y, workspace);
      agreed[static_cast<std::size_t>(t)] = same_bits(y, expected) && same_bits(layer.infer(x), expected);
    });
    EXPECT_EQ(agreed, std::vector<int>(4, 1));
  }
}

TEST(MultiLinearConcurrent, ManyThreadsInferByRow) {
  const auto layer = a_layer(0);
  const auto x = random_matrix<float>(n, k, 3);
  std::vector<std::string> choices;
  for (Index i = 0; i < n; ++i) choices.emplace_back(i % 3 == 0 ? "a" : i % 3 == 1 ? "b" : "__base__");
  const Matrix<float> expected = layer.infer(x, choices);
  std::vector<int> agreed(4, 0);
  run_threads(4, [&](int t) {
    Workspace workspace;
    Matrix<float> y(n, d);
    for (int i = 0; i < 20; ++i) layer.infer(x, choices, y, workspace);
    agreed[static_cast<std::size_t>(t)] = static_cast<bool>(same_bits(y, expected));
  });
  EXPECT_EQ(agreed, std::vector<int>(4, 1));
}

TEST(MultiLinearConcurrent, TwoThreadsTrainOnPartsOfOneBatch) {
  const auto layer = a_layer(0.3);
  const auto x = random_matrix<float>(2 * n, k, 3);
  const auto dy = random_matrix<float>(2 * n, d, 4);
  Matrix<float> y(2 * n, d), dx(2 * n, k), y_parts(2 * n, d), dx_parts(2 * n, k);
  MultiLoraRecord<float> record;
  record.position = {9, 0};
  Workspace workspace;
  auto whole = layer.make_gradients();
  layer.forward(x, record, y, workspace);
  layer.backward(x, record, dy, whole, dx, workspace);
  std::vector<MultiLoraGradients<float>> gradients(2, layer.make_gradients());
  run_threads(2, [&](int t) {
    MultiLoraRecord<float> own;
    own.position = {9, t * n};
    Workspace scratch;
    layer.forward(x.middleRows(t * n, n), own, y_parts.middleRows(t * n, n), scratch);
    layer.backward(x.middleRows(t * n, n), own, dy.middleRows(t * n, n), gradients[static_cast<std::size_t>(t)],
                   dx_parts.middleRows(t * n, n), scratch);
  });
  EXPECT_TRUE(same_bits(y_parts, y));
  EXPECT_TRUE(same_bits(dx_parts, dx));
  gradients[0] += gradients[1];
  // The sums over rows are associated differently: 2n roundings of numbers no larger than the sum of magnitudes, times
  // the scale 1 / (1 - p) of dropout and the norms of the factors, which are below 8.
  const float bound = 2 * n * 1.2e-7F * dy.norm() * x.norm() * 8;
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_LT((gradients[0].adapters[i].A - whole.adapters[i].A).norm(), bound);
    EXPECT_LT((gradients[0].adapters[i].B - whole.adapters[i].B).norm(), bound);
  }
}

TEST(MultiLinearConcurrent, ResultsHaveTheSameBitsForAnyNumberOfWorkers) {
  const auto layer = a_layer(0.3);
  const auto x = random_matrix<float>(n, k, 3);
  const auto dy = random_matrix<float>(n, d, 4);
  struct Answer {
    Matrix<float> y, dx, inferred;
    MultiLoraGradients<float> gradients;
  };
  const auto run = [&](int workers) {
    testing::ThreadExecutor executor(workers);
    Workspace workspace(executor);
    Answer answer{Matrix<float>(n, d), Matrix<float>(n, k), Matrix<float>(n, d), layer.make_gradients()};
    MultiLoraRecord<float> record;
    layer.forward(x, record, answer.y, workspace);
    layer.backward(x, record, dy, answer.gradients, answer.dx, workspace);
    layer.infer(x, answer.inferred, workspace);
    return answer;
  };
  const auto one = run(1);
  for (const int workers : {2, 7}) {
    const auto many = run(workers);
    EXPECT_TRUE(same_bits(many.y, one.y));
    EXPECT_TRUE(same_bits(many.dx, one.dx));
    EXPECT_TRUE(same_bits(many.inferred, one.inferred));
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_TRUE(same_bits(many.gradients.adapters[i].A, one.gradients.adapters[i].A));
      EXPECT_TRUE(same_bits(many.gradients.adapters[i].B, one.gradients.adapters[i].B));
    }
  }
}

}  // namespace
}  // namespace lora
