// One layer, many threads. Run under ThreadSanitizer.
#include <gtest/gtest.h>
#include <thread>
#include <vector>

#include "lora/layers/linear.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;

constexpr Index d = 70, k = 90, n = 21;

template <class Body>
void run_threads(int count, const Body& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < count; ++t) threads.emplace_back([&body, t] { body(t); });
  for (auto& thread : threads) thread.join();
}

TEST(LinearConcurrent, ManyThreadsInferOnOneLayer) {
  for (const bool merged : {false, true}) {
    LoraLinear<float> made(random_matrix<float>(d, k, 1), random_vector<float>(d, 2),
                           {.rank = 4, .lora_bias = true, .init_lora_weights = InitLoraWeights::random}, 1);
    if (merged) made.eval();
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

TEST(LinearConcurrent, ManyThreadsTrainOnPartsOfOneBatch) {
  const LoraLinear<double> layer(random_matrix<double>(d, k, 1),
                                 {.rank = 4, .dropout = 0.3, .init_lora_weights = InitLoraWeights::random}, 1);
  const auto x = random_matrix<double>(n, k, 3);
  const auto dy = random_matrix<double>(n, d, 4);
  Matrix<double> y(n, d), dx(n, k), y_parts(n, d), dx_parts(n, k);
  LoraRecord<double> record;
  record.position = {9, 0};
  Workspace workspace;
  auto whole = layer.make_gradients();
  layer.forward(x, record, y, workspace);
  layer.backward(x, record, dy, whole, dx, workspace);

  constexpr int parts = 3;
  std::vector<LoraGradients<double>> gradients(parts, layer.make_gradients());
  run_threads(parts, [&](int t) {
    const Index rows = n / parts;
    const Index first = t * rows;
    LoraRecord<double> own;
    own.position = {9, first};
    Workspace scratch;
    layer.forward(x.middleRows(first, rows), own, y_parts.middleRows(first, rows), scratch);
    layer.backward(x.middleRows(first, rows), own, dy.middleRows(first, rows), gradients[static_cast<std::size_t>(t)],
                   dx_parts.middleRows(first, rows), scratch);
  });
  EXPECT_TRUE(same_bits(y_parts, y));
  EXPECT_TRUE(same_bits(dx_parts, dx));
  auto sum = layer.make_gradients();
  for (const auto& part : gradients) sum += part;
  // The sums over rows are associated differently: n roundings of numbers no larger than the sum of magnitudes.
  const double bound = n * 2.3e-16 * dy.norm() * x.norm();
  EXPECT_LT((sum.A - whole.A).norm(), bound);
  EXPECT_LT((sum.B - whole.B).norm(), bound);
}

TEST(LinearConcurrent, ResultsHaveTheSameBitsForAnyNumberOfWorkers) {
  const auto x = random_matrix<float>(n, k, 3);
  const auto dy = random_matrix<float>(n, d, 4);
  const LoraLinear<float> layer(
      random_matrix<float>(d, k, 1), random_vector<float>(d, 2),
      {.rank = 4, .dropout = 0.3, .bias = BiasMode::all, .init_lora_weights = InitLoraWeights::random}, 1);
  struct Answer {
    Matrix<float> y, dx, inferred;
    LoraGradients<float> gradients;
  };
  const auto run = [&](int workers) {
    testing::ThreadExecutor executor(workers);
    Workspace workspace(executor);
    Answer answer{Matrix<float>(n, d), Matrix<float>(n, k), Matrix<float>(n, d), layer.make_gradients()};
    LoraRecord<float> record;
    layer.forward(x, record, answer.y, workspace);
    layer.backward(x, record, dy, answer.gradients, answer.dx, workspace);
    layer.infer(x, answer.inferred, workspace);
    return answer;
  };
  const auto one = run(1);
  for (const int workers : {2, 3, 7}) {
    const auto many = run(workers);
    EXPECT_TRUE(same_bits(many.y, one.y));
    EXPECT_TRUE(same_bits(many.dx, one.dx));
    EXPECT_TRUE(same_bits(many.inferred, one.inferred));
    EXPECT_TRUE(same_bits(many.gradients.A, one.gradients.A));
    EXPECT_TRUE(same_bits(many.gradients.B, one.gradients.B));
    EXPECT_TRUE(same_bits(many.gradients.bias, one.gradients.bias));
  }
}

}  // namespace
}  // namespace lora
