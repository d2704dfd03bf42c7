// SPDX-License-Identifier: MIT
// Training on several ranks is training by one process, and all suites of this folder pass on 1 to 4 ranks.
#include "lora/mpi/mpi.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/layers/linear.hpp"
#include "lora/model/lora_model.hpp"
#include "lora/optim/adamw.hpp"
#include "lora/optim/sgd.hpp"
#include "mpi/job.hpp"
#include "mpi/ranks.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing::mpi_test {
namespace {

TEST(AllRanksJob, AFailedTestFailsTheJob) {
  const auto run = run_job(2, "--ranks", "PlantedFailure.DISABLED_OnRankOne");
  EXPECT_TRUE(run.exit_code != 0 && run.exit_code != job_hung) << run.exit_code;
  EXPECT_TRUE(run.says("rank 1 of 2: ") && run.says("planted")) << run.output;
}

class RanksJob : public ::testing::TestWithParam<int> {};

TEST_P(RanksJob, EveryTestPasses) {
  const auto run = run_job(GetParam(), "--ranks", "*");
  EXPECT_EQ(run.exit_code, 0) << run.output;
  EXPECT_TRUE(run.says("[  PASSED  ]")) << run.output;
  EXPECT_TRUE(run.says("Training.OfOneLayerIsThatOfOneProcess")) << run.output;
}
INSTANTIATE_TEST_SUITE_P(Ranks, RanksJob, ::testing::Values(1, 2, 3, 4));

TEST(PlantedFailure, DISABLED_OnRankOne) { EXPECT_NE(world().rank(), 1) << "planted"; }

/// Least squares for one layer by SGD in double: L = |Y - T|^2 / (2 N).
struct Regression {
  static constexpr Index samples = 24;
  static constexpr Index in_features = 10;
  static constexpr Index out_features = 7;
  static constexpr double rate = 0.02;

  Matrix<double> x = random_matrix<double>(samples, in_features, 1, 0.5);
  Matrix<double> target = random_matrix<double>(samples, out_features, 2);
  LoraLinear<double> layer{random_matrix<double>(out_features, in_features, 3),
                           {.rank = 3, .alpha = 3, .init_lora_weights = InitLoraWeights::random},
                           4};
  SGD<double> optimizer{{.learning_rate = rate}};

  void differentiate(const mpi::Shard& part) {
    layer.zero_grad();
    if (part.count == 0) return;
    const Matrix<double> y = layer.forward(x.middleRows(part.begin, part.count));
    const Matrix<double> dy = (y - target.middleRows(part.begin, part.count)) / static_cast<double>(part.count);
    layer.accumulate_gradients(dy);
  }
  void descend() { optimizer.step(layer); }
  [[nodiscard]] Matrix<double> residual() const { return layer.infer(x) - target; }
};

/// How far apart two trainings from equal values may come in rounding. With theta = (A, B), one step maps theta to
/// theta - rate g(theta); hence the distance e grows as e <- (1 + rate L) e + rate epsilon, where
///   L = s x R + (s x)^2 (|A| + |B|)^2 bounds the derivative of g, x = |X|/sqrt(N), R = |Y - T|/sqrt(N),
///   epsilon bounds the difference of the gradients at equal values: gradient_tolerance with the magnitudes of dY, and
///   the rounding of dY itself, which passes once through the layer, gamma(k + r + 8) for each side.
/// All norms are Frobenius norms. L is doubled for what e itself adds to the norms.
class Divergence {
 public:
  void step(const Regression& run) {
    const double n = static_cast<double>(run.samples);
    const double s = run.layer.scaling();
    const double a = run.layer.lora_A().norm();
    const double b = run.layer.lora_B().norm();
    const double x = run.x.norm() / std::sqrt(n);
    const double residual = run.residual().norm() / std::sqrt(n);
    const double slope = 2 * (s * x * residual + s * s * x * x * (a + b) * (a + b));

    const double target = run.target.norm() / std::sqrt(n);
    const double output = x * run.layer.base_weight().norm() + s * x * a * b + target;
    const double of_sums = mpi::gradient_tolerance<double>(run.samples, run.in_features, world().size()) * residual;
    const double of_residual = mpi::gradient_tolerance<double>(0, run.in_features + run.layer.rank(), 1) * output;
    const double epsilon = s * x * std::hypot(a, b) * (of_sums + of_residual);
    bound_ = (1 + run.rate * slope) * bound_ + run.rate * epsilon;
  }
  [[nodiscard]] double bound() const noexcept { return bound_; }

 private:
  double bound_ = 0;
};

TEST(Training, OfOneLayerIsThatOfOneProcess) {
  Regression one;
  Regression many;
  mpi::GradientReducer<double> reducer(world(), many.layer.parameters());
  const mpi::Shard part = mpi::shard(Regression::samples, world().rank(), world().size());
  const double loss_before = one.residual().squaredNorm();
  Divergence divergence;
  for (int step = 0; step < 10; ++step) {
    divergence.step(one);
    one.differentiate({0, Regression::samples});
    one.descend();
    many.differentiate(part);
    reducer.reduce(many.layer.parameters(), static_cast<double>(part.count));
    many.descend();
    const double distance = std::hypot((one.layer.lora_A() - many.layer.lora_A()).norm(),
                                       (one.layer.lora_B() - many.layer.lora_B()).norm());
    EXPECT_LE(distance, divergence.bound()) << "step " << step;
    EXPECT_TRUE(same_on_all_ranks(many.layer.lora_A()));
    EXPECT_TRUE(same_on_all_ranks(many.layer.lora_B()));
  }
  EXPECT_LT(divergence.bound(), 1e-10) << "a bound that says nothing";
  EXPECT_LT(one.residual().squaredNorm(), loss_before);
}

/// Two adapted layers and a head, as a user's class with a LoraModel over it, trained by AdamW on this rank's part.
struct Network {
  LoraLinear<float> first{random_matrix<float>(16, 8, 1), {.rank = 0}, 0};
  LoraLinear<float> second{random_matrix<float>(16, 16, 2), {.rank = 0}, 0};
  Trainable<float> head{.value = random_matrix<float>(3, 16, 3), .gradient = {}, .moments = {}};
  LoraModel<float> model;
  AdamW<float> optimizer{{.learning_rate = 1e-2}};
  Matrix<float> x = random_matrix<float>(30, 8, 4);
  Matrix<float> target = random_matrix<float>(30, 3, 5);

  Network() {
    model.add("first", first);
    model.add("second", second);
    model.add("head.weight", head);
    model.inject({.lora = {.rank = 4, .alpha = 8, .dropout = 0},
                  .target_modules = {"first", "second"},
                  .modules_to_save = {"head"}},
                 7);
    model.train();
    head.ensure_gradient();
  }

  /// The loss over this rank's samples, times their number. `ready(layer)` is told of layers whose gradients are
  /// done.
  template <class Ready>
  double differentiate(const mpi::Shard& part, const Ready& ready) {
    model.zero_grad();
    const Matrix<float> a = first.forward(x.middleRows(part.begin, part.count));
    const Matrix<float> h = a.cwiseMax(0.F);
    const Matrix<float> b = second.forward(h);
    const Matrix<float> difference = b * head.value.transpose() - target.middleRows(part.begin, part.count);
    const Matrix<float> dy = difference / static_cast<float>(part.count);
    head.gradient += dy.transpose() * b;
    const Matrix<float> dh = second.backward((dy * head.value).eval());
    ready(second);
    first.accumulate_gradients((dh.array() * (a.array() > 0).cast<float>()).matrix().eval());
    ready(first);
    return difference.squaredNorm() / 2;
  }
};

struct TrainedNetwork {
  Matrix<float> parameters;
  double loss_before = 0;
  double loss_after = 0;
};

TrainedNetwork train(bool overlapped, int rank, int size) {
  Network network;
  const mpi::Communicator ranks(size == 1 ? MPI_COMM_SELF : world().handle());
  const mpi::Shard part = mpi::shard(30, rank, size);
  mpi::broadcast_values(ranks, network.model);
  mpi::GradientReducer<float> reducer(ranks, network.model);
  TrainedNetwork result;
  for (int step = 0; step < 20; ++step) {
    const double loss = network.differentiate(part, [&](LoraLinear<float>& layer) {
      if (overlapped) reducer.start(layer);
    });
    (step == 0 ? result.loss_before : result.loss_after) = loss;
    reducer.reduce(network.model, static_cast<double>(part.count));
    network.optimizer.step(network.model);
  }
  std::vector<float> values;
  for (const auto& parameter : network.model.trainable_parameters()) {
    values.insert(values.end(), parameter.value().data(), parameter.value().data() + parameter.size());
  }
  result.parameters = Eigen::Map<Matrix<float>>(values.data(), 1, static_cast<Index>(values.size()));
  return result;
}

TEST(Training, OfAModelEndsInTheSameBitsOnAllRanksInAllRunsAndWithOverlap) {
  const auto first = train(false, world().rank(), world().size());
  EXPECT_LT(first.loss_after, 0.7 * first.loss_before);
  EXPECT_TRUE(same_on_all_ranks(first.parameters));
  EXPECT_TRUE(same_bits(train(false, world().rank(), world().size()).parameters, first.parameters));
  EXPECT_TRUE(same_bits(train(true, world().rank(), world().size()).parameters, first.parameters));
}

TEST(Training, OfAModelOnOneRankIsPlainTraining) {
  const auto reduced = train(true, 0, 1);
  Network network;
  for (int step = 0; step < 20; ++step) {
    network.differentiate({0, 30}, [](LoraLinear<float>&) {});
    network.optimizer.step(network.model);
  }
  Index position = 0;
  for (const auto& parameter : network.model.trainable_parameters()) {
    const Matrix<float> value = parameter.value();
    const Matrix<float> expected = reduced.parameters.middleCols(position, parameter.size());
    EXPECT_TRUE(same_bits(value.reshaped<Eigen::RowMajor>().transpose().eval(), expected)) << parameter.name();
    position += parameter.size();
  }
}

}  // namespace
}  // namespace lora::testing::mpi_test
