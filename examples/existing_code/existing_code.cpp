// SPDX-License-Identifier: MIT
// Adapts a network in existing raw buffers: no copy of its weights, no change to its code.
//
// A walking robot's controller reads an inertial sensor and its joints. After a fall the sensor is turned by 40 degrees
// about its z axis, and the commands are wrong. LoRA learns the correction from recorded readings; merging writes it
// into the controller's own buffers, so that the unchanged controller_run() works correctly; unmerging restores the
// buffers bit for bit.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <numbers>
#include <tuple>
#include <vector>

#include "lora/lora.hpp"

// ==== Existing code: it knows nothing of LoRA =============================================================

struct Controller {
  int inputs, hidden, outputs;
  float *w1, *b1;  // hidden x inputs, hidden
  float *w2, *b2;  // outputs x hidden, outputs
};

// y = W x + b
static void affine(const float* w, const float* b, const float* x, float* y, int rows, int cols) {
  for (int i = 0; i < rows; ++i) {
    float sum = b[i];
    for (int j = 0; j < cols; ++j) sum += w[i * cols + j] * x[j];
    y[i] = sum;
  }
}

static void controller_run(const Controller* c, const float* readings, float* commands, float* scratch) {
  affine(c->w1, c->b1, readings, scratch, c->hidden, c->inputs);
  for (int i = 0; i < c->hidden; ++i) scratch[i] = std::tanh(scratch[i]);
  affine(c->w2, c->b2, scratch, commands, c->outputs, c->hidden);
}

// ==== What you add ========================================================================================

class ControllerAdapter {
  using Layer = lora::LoraLinear<float, lora::DenseWeight<float>>;  // DenseWeight: a view of your own memory

 public:
  ControllerAdapter(const Controller& c, const lora::LoraConfig& config)
      : layer1_(view(c.w1, c.hidden, c.inputs), bias(c.b1, c.hidden), config, /*seed=*/1),
        layer2_(view(c.w2, c.outputs, c.hidden), bias(c.b2, c.outputs), config, /*seed=*/2) {}

  // One step of AdamW on the mean squared error of a batch, one sample per row.
  void train(const lora::Matrix<float>& readings, const lora::Matrix<float>& commands) {
    const lora::Matrix<float> hidden = layer1_.forward(readings).array().tanh();
    const lora::Matrix<float> error = layer2_.forward(hidden) - commands;
    const lora::Matrix<float> d_hidden = layer2_.backward(error * (2.0F / static_cast<float>(error.size())));
    layer1_.accumulate_gradients((d_hidden.array() * (1 - hidden.array().square())).matrix());
    optimizer_.step(layer1_);
    optimizer_.step(layer2_);
    layer1_.zero_grad();
    layer2_.zero_grad();
  }

  void merge() { layer1_.merge(), layer2_.merge(); }
  void unmerge() { layer1_.unmerge(), layer2_.unmerge(); }

  const Layer& layer1() const { return layer1_; }
  const Layer& layer2() const { return layer2_; }

 private:
  static lora::DenseWeight<float> view(float* w, int rows, int cols) {
    return lora::DenseWeight<float>(lora::MatrixView<float>{w, rows, cols});
  }
  static Eigen::Map<const Eigen::VectorXf> bias(const float* b, int size) { return {b, size}; }

  Layer layer1_, layer2_;
  lora::AdamW<float> optimizer_{{.learning_rate = 1e-2, .weight_decay = 0}};
};

// ==== The demonstration ===================================================================================

namespace {

constexpr int inputs = 12;  // accelerometer x y z, gyroscope x y z, six joint angles
constexpr int hidden = 64;
constexpr int outputs = 4;

float uniform(std::uint32_t& state) {  // in [-1, 1)
  state = state * 1664525U + 1013904223U;
  return static_cast<float>(state >> 8U) * 0x1p-23F - 1.0F;
}

// The controller as its owner loads it, here from a generator; the owner keeps the buffers.
struct OwnedController {
  std::vector<float> w1, b1, w2, b2;

  OwnedController() : w1(hidden * inputs), b1(hidden), w2(outputs * hidden), b2(outputs) {
    std::uint32_t state = 2106;
    for (float& w : w1) w = uniform(state) * std::sqrt(3.0F / inputs);
    for (float& w : w2) w = uniform(state) * std::sqrt(3.0F / hidden);
    for (auto* biases : {&b1, &b2}) {
      for (float& b : *biases) b = 0.1F * uniform(state);
    }
  }
  Controller get() { return {inputs, hidden, outputs, w1.data(), b1.data(), w2.data(), b2.data()}; }
};

lora::Matrix<float> run_rows(const Controller& c, const lora::Matrix<float>& readings) {
  lora::Matrix<float> commands(readings.rows(), outputs);
  std::vector<float> scratch(hidden);
  for (lora::Index i = 0; i < readings.rows(); ++i) {
    controller_run(&c, readings.row(i).data(), commands.row(i).data(), scratch.data());
  }
  return commands;
}

// Readings of the turned sensor, with the controller's commands for the same readings before the fall.
struct Recording {
  lora::Matrix<float> readings, commands;

  Recording(const Controller& intact, int samples, std::uint32_t seed) : readings(samples, inputs) {
    for (float& value : readings.reshaped<Eigen::RowMajor>()) value = uniform(seed);
    commands = run_rows(intact, readings);
    const float angle = 40.0F * std::numbers::pi_v<float> / 180.0F;
    const Eigen::Matrix2f turn{{std::cos(angle), std::sin(angle)}, {-std::sin(angle), std::cos(angle)}};
    for (const int first : {0, 3}) readings.middleCols<2>(first) = (readings.middleCols<2>(first) * turn).eval();
  }
};

float mean_squared_error(const Controller& c, const Recording& data) {
  return (run_rows(c, data.readings) - data.commands).squaredNorm() / static_cast<float>(data.commands.size());
}

bool same_bits(const OwnedController& a, const OwnedController& b) {
  const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
    return std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
  };
  return same(a.w1, b.w1) && same(a.b1, b.b1) && same(a.w2, b.w2) && same(a.b2, b.b2);
}

constexpr float epsilon = std::numeric_limits<float>::epsilon();

// How far two evaluations of W x + b + s B A x may differ for |x_j| <= largest: each is off by at most n * epsilon
// times the sum of its terms' magnitudes, where n counts roundings: of the inputs, the rank twice, bias, scaling and
// sum.
template <class Layer>
float rounding_bound(const Layer& layer, float largest) {
  const lora::Matrix<float> terms =
      layer.base_weight().cwiseAbs() + layer.scaling() * (layer.lora_B().cwiseAbs() * layer.lora_A().cwiseAbs());
  const auto n = static_cast<float>(layer.in_features() + 2 * layer.rank() + 3);
  return 2 * n * epsilon * (largest * terms.rowwise().sum().maxCoeff() + layer.bias().cwiseAbs().maxCoeff());
}

int failures = 0;
void check(bool holds, const char* claim) {
  std::printf("  [%s] %s\n", holds ? "ok" : "FAILED", claim);
  if (!holds) ++failures;
}

void demonstrate() {
  OwnedController buffers;
  const OwnedController original = buffers;
  const Controller controller = buffers.get();
  const Recording train(controller, 512, 1);
  const Recording test(controller, 512, 2);
  const float error_before = mean_squared_error(controller, test);

  ControllerAdapter adapter(controller, {.rank = 4, .alpha = 8});
  for (int step = 0; step < 500; ++step) adapter.train(train.readings, train.commands);
  const auto& [layer1, layer2] = std::tie(adapter.layer1(), adapter.layer2());
  std::printf("Trained %td of %zu parameters on %td recorded samples.\n",
              layer1.trainable_parameter_count() + layer2.trainable_parameter_count(),
              buffers.w1.size() + buffers.b1.size() + buffers.w2.size() + buffers.b2.size(), train.readings.rows());
  check(same_bits(buffers, original), "training wrote to none of the controller's buffers");

  const lora::Matrix<float> answers =
      layer2.infer(layer1.infer(test.readings).unaryExpr([](float z) { return std::tanh(z); }));
  adapter.merge();
  const float error_merged = mean_squared_error(controller, test);
  std::printf("Merged in place. Mean squared error of controller_run() on new samples: %.6f before, %.6f now.\n",
              static_cast<double>(error_before), static_cast<double>(error_merged));
  check(error_merged < error_before / 10, "the unchanged controller_run() errs less than a tenth of what it did");
  check(layer1.frozen_weight().view().data == buffers.w1.data(),
        "the adapted weights are the controller's own buffers");
  // tanh does not amplify a difference, and rounds to 2 epsilon; the second layer amplifies it by its weight's norm.
  const float stretch = layer2.weight().cwiseAbs().rowwise().sum().maxCoeff();
  const float hidden_bound = rounding_bound(layer1, test.readings.cwiseAbs().maxCoeff()) + 4 * epsilon;
  const float tolerance = hidden_bound * stretch + rounding_bound(layer2, 1);
  check((run_rows(controller, test.readings) - answers).cwiseAbs().maxCoeff() <= tolerance,
        "it answers as the unmerged adapter does, up to rounding");

  adapter.unmerge();
  check(same_bits(buffers, original), "unmerging restored every bit");
  check(mean_squared_error(controller, test) == error_before, "controller_run() answers as before");
}

}  // namespace

int main() {
  try {
    demonstrate();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "existing_code: %s\n", error.what());
    return EXIT_FAILURE;
  }
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
