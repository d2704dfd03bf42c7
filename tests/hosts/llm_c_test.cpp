// SPDX-License-Identifier: MIT
// Adapters of a GPT-2 as llm.c has it, over a stand-in for llm.c: loss and gradients against the formulas in double.
#include "llm_c.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <utility>
#include <vector>

#include "llm.c/gpt2_lora.hpp"
#include "lora/core/random.hpp"
#include "support/bits.hpp"

namespace lora::testing::llm_c_test {
namespace {

using MatrixD = lora::Matrix<double>;

constexpr int batch = 2, length = 3, vocabulary = 7, padded = 8, layers = 2, heads = 2, channels = 4;
constexpr std::array<int, batch * length> inputs{0, 3, 6, 2, 2, 5}, targets{3, 6, 1, 2, 5, 4};

struct Tensor {
  float* ParameterTensors::*where;
  int rows, cols;
  double center;  ///< values lie within 0.5 of it
};
constexpr std::array<Tensor, 16> tensors = {{
    {&ParameterTensors::wte, padded, channels, 0},
    {&ParameterTensors::wpe, length, channels, 0},
    {&ParameterTensors::ln1w, layers, channels, 1},
    {&ParameterTensors::ln1b, layers, channels, 0},
    {&ParameterTensors::qkvw, layers * 3 * channels, channels, 0},
    {&ParameterTensors::qkvb, layers * 3, channels, 0},
    {&ParameterTensors::attprojw, layers* channels, channels, 0},
    {&ParameterTensors::attprojb, layers, channels, 0},
    {&ParameterTensors::ln2w, layers, channels, 1},
    {&ParameterTensors::ln2b, layers, channels, 0},
    {&ParameterTensors::fcw, layers * 4 * channels, channels, 0},
    {&ParameterTensors::fcb, layers * 4, channels, 0},
    {&ParameterTensors::fcprojw, layers* channels, 4 * channels, 0},
    {&ParameterTensors::fcprojb, layers, channels, 0},
    {&ParameterTensors::lnfw, 1, channels, 1},
    {&ParameterTensors::lnfb, 1, channels, 0},
}};

class Model {
 public:
  Model() {
    for (const Tensor& tensor : tensors) {
      offsets_.push_back(weights.size());
      weights.resize(weights.size() + static_cast<std::size_t>(tensor.rows * tensor.cols));
    }
    gpt2.config = {length, vocabulary, padded, layers, heads, channels};
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      float* const data = weights.data() + offsets_[i];
      const Index size = Index{tensors[i].rows} * tensors[i].cols;
      fill_uniform(MatrixView<float>{data, 1, size}, 0.5, RandomStream(1, i));
      for (Index j = 0; j < size; ++j) data[j] += static_cast<float>(tensors[i].center);
      gpt2.params.*tensors[i].where = data;
    }
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model() {
    std::free(gpt2.acts_memory);
    std::free(gpt2.inputs);
    std::free(gpt2.targets);
  }

  /// `rows` rows of a tensor from row `first` on.
  [[nodiscard]] MatrixD rows_of(float* ParameterTensors::*tensor, Index first, Index rows, Index cols) const {
    return Eigen::Map<const Matrix<float>>(gpt2.params.*tensor + first * cols, rows, cols).cast<double>();
  }

  GPT2 gpt2;
  std::vector<float> weights;

 private:
  std::vector<std::size_t> offsets_;
};

/// What is adapted in each block: W0 + s B A, of query, key and value together, and of the projection.
using Adapted = std::array<std::array<MatrixD, 2>, layers>;

MatrixD normalised(const MatrixD& x, const MatrixD& weight, const MatrixD& bias) {
  MatrixD y = x;
  for (Index row = 0; row < x.rows(); ++row) {
    const double mean = x.row(row).mean();
    const double variance = (x.row(row).array() - mean).square().mean();
    y.row(row) = ((x.row(row).array() - mean) / std::sqrt(variance + 1e-5) * weight.array() + bias.array()).matrix();
  }
  return y;
}

MatrixD attended(const MatrixD& qkv) {
  MatrixD y = MatrixD::Zero(length, channels);
  constexpr Index size = channels / heads;
  for (Index head = 0; head < heads; ++head) {
    const auto part = [&](Index which) { return qkv.middleCols(which * channels + head * size, size); };
    for (Index from = 0; from < length; ++from) {
      Eigen::VectorXd scores = part(1).topRows(from + 1) * part(0).row(from).transpose() / std::sqrt(double{size});
      scores = scores.array().exp();
      y.row(from).segment(head * size, size) = scores.transpose() * part(2).topRows(from + 1) / scores.sum();
    }
  }
  return y;
}

/// The mean cross-entropy by GPT-2's formulas.
double loss_by_formula(const Model& model, const Adapted& adapted) {
  using P = ParameterTensors;
  const auto vector = [&](float* P::*tensor, Index layer, Index cols) { return model.rows_of(tensor, layer, 1, cols); };
  double loss = 0;
  for (int sequence = 0; sequence < batch; ++sequence) {
    MatrixD x = model.rows_of(&P::wpe, 0, length, channels);
    for (Index t = 0; t < length; ++t) {
      x.row(t) += model.rows_of(&P::wte, inputs[static_cast<std::size_t>(sequence * length + t)], 1, channels);
    }
    for (Index l = 0; l < layers; ++l) {
      const auto& [qkv, projection] = adapted[static_cast<std::size_t>(l)];
      MatrixD h = normalised(x, vector(&P::ln1w, l, channels), vector(&P::ln1b, l, channels)) * qkv.transpose();
      h = attended(h.rowwise() + Eigen::RowVectorXd(vector(&P::qkvb, l, 3 * channels)));
      x += (h * projection.transpose()).rowwise() + Eigen::RowVectorXd(vector(&P::attprojb, l, channels));
      h = normalised(x, vector(&P::ln2w, l, channels), vector(&P::ln2b, l, channels)) *
          model.rows_of(&P::fcw, l * 4 * channels, 4 * channels, channels).transpose();
      h.rowwise() += Eigen::RowVectorXd(vector(&P::fcb, l, 4 * channels));
      h = h.unaryExpr(
          [](double z) { return z / 2 * (1 + std::tanh(stand_in_gelu_slope * (z + 0.044715 * z * z * z))); });
      x += (h * model.rows_of(&P::fcprojw, l * channels, channels, 4 * channels).transpose()).rowwise() +
           Eigen::RowVectorXd(vector(&P::fcprojb, l, channels));
    }
    const MatrixD logits = normalised(x, vector(&P::lnfw, 0, channels), vector(&P::lnfb, 0, channels)) *
                           model.rows_of(&P::wte, 0, vocabulary, channels).transpose();
    for (Index t = 0; t < length; ++t) {
      loss += std::log(logits.row(t).array().exp().sum()) -
              logits(t, targets[static_cast<std::size_t>(sequence * length + t)]);
    }
  }
  return loss / (batch * length);
}

/// W0 + s B A with one element of one factor moved. Query, key and value have factors of their own, of rank r, in rows
/// r i of A and in rows `channels` i of B.
struct Moved {
  std::size_t layer = 0, which = 0;
  bool in_b = false;
  Index element = 0;
  double by = 0;
};
Adapted merged(const Model& model, hosts::Gpt2Lora& lora, const Moved& moved = {}) {
  Adapted result;
  for (std::size_t l = 0; l < layers; ++l) {
    const auto add = [&](const auto& layer, std::size_t which, float* ParameterTensors::*tensor, Index parts) {
      MatrixD a = layer.lora_A().template cast<double>(), b = layer.lora_B().template cast<double>();
      if (moved.layer == l && moved.which == which) (moved.in_b ? b : a).data()[moved.element] += moved.by;
      MatrixD& w = result[l][which];
      w = model.rows_of(tensor, static_cast<Index>(l) * parts * channels, parts * channels, channels);
      for (Index part = 0; part < parts; ++part) {
        w.middleRows(part * channels, channels) += static_cast<double>(layer.scaling()) *
                                                   b.middleRows(part * channels, channels) *
                                                   a.middleRows(part * layer.rank(), layer.rank());
      }
    };
    add(lora.blocks()[l].qkv, 0, &ParameterTensors::qkvw, 3);
    add(lora.blocks()[l].attproj, 1, &ParameterTensors::attprojw, 1);
  }
  return result;
}

void forward(hosts::Gpt2Lora& lora) { lora.forward(inputs.data(), targets.data(), batch, length); }

void set_random_factors(hosts::Gpt2Lora& lora) {
  std::uint64_t seed = 50;
  const auto set = [&](auto& layer) {
    Matrix<float> a = layer.lora_A(), b = layer.lora_B();
    fill_uniform(view_of(a), 0.5, RandomStream(seed++, 0));
    fill_uniform(view_of(b), 0.5, RandomStream(seed++, 0));
    layer.set_factors(a, b);
  };
  for (auto& block : lora.blocks()) set(block.qkv), set(block.attproj);
}

// Float sums of a few terms through two blocks; the loss is about 2.
constexpr double loss_tolerance = 5e-6;

TEST(Gpt2Lora, TheLossIsThatOfTheFormulas) {
  Model model;
  hosts::Gpt2Lora lora(model.gpt2, {.rank = 2, .alpha = 4}, 7);
  forward(lora);
  const double base = loss_by_formula(model, merged(model, lora));
  EXPECT_NEAR(static_cast<double>(model.gpt2.mean_loss), base, loss_tolerance);
  set_random_factors(lora);
  forward(lora);
  const double adapted = loss_by_formula(model, merged(model, lora));
  EXPECT_GT(std::abs(adapted - base), 0.01);
  EXPECT_NEAR(static_cast<double>(model.gpt2.mean_loss), adapted, loss_tolerance);
}

// Differences in double err by some 1e-9; float leaves the rest, some thirty roundings of 6e-8 of gradients below 1.
TEST(Gpt2Lora, GradientsAreThoseOfFiniteDifferences) {
  Model model;
  hosts::Gpt2Lora lora(model.gpt2, {.rank = 2, .alpha = 4}, 7);
  set_random_factors(lora);
  forward(lora);
  lora.backward();
  constexpr double step = 1e-5;
  for (std::size_t l = 0; l < layers; ++l) {
    const auto compare = [&](auto& layer, std::size_t which) {
      const auto gradients = layer.gradients();
      const auto compare_factor = [&](const MatrixD& gradient, bool in_b) {
        for (Index i = 0; i < gradient.size(); ++i) {
          const auto loss = [&](double by) {
            return loss_by_formula(model, merged(model, lora, {l, which, in_b, i, by}));
          };
          EXPECT_NEAR(gradient.data()[i], (loss(step) - loss(-step)) / (2 * step), 2e-6)
              << "block " << l << (which == 0 ? " qkv" : " attproj") << (in_b ? " B " : " A ") << i;
        }
        EXPECT_GT(gradient.cwiseAbs().maxCoeff(), 1e-3);
      };
      compare_factor(gradients.A.template cast<double>(), false);
      compare_factor(gradients.B.template cast<double>(), true);
    };
    compare(lora.blocks()[l].qkv, 0);
    compare(lora.blocks()[l].attproj, 1);
  }
}

// The first position sees itself alone, so that adding the same numbers to its embedding moves the loss by their
// product with the gradient of what enters the first block.
TEST(Gpt2Lora, TheGradientOfWhatEntersTheFirstBlockIsThatOfThePositions) {
  Model model;
  hosts::Gpt2Lora lora(model.gpt2, {.rank = 2, .alpha = 4}, 7);
  set_random_factors(lora);
  forward(lora);
  Matrix<float> gradient(batch * length, channels);
  lora.backward(gradient.data());
  constexpr float step = 1.0F / 4096;
  for (Index t = 0; t < length; ++t) {
    for (Index c = 0; c < channels; ++c) {
      float& value = model.gpt2.params.wpe[t * channels + c];
      const float kept = value;
      const auto loss = [&](float by) {
        value = kept + by;
        return loss_by_formula(model, merged(model, lora));
      };
      const float above = kept + step, below = kept - step;
      const double slope = (loss(step) - loss(-step)) / static_cast<double>(above - below);
      value = kept;
      EXPECT_NEAR(static_cast<double>(gradient(t, c) + gradient(length + t, c)), slope, 1e-5) << t << " " << c;
    }
  }
}

TEST(Gpt2Lora, MergesIntoTheModelsWeightsAndRestoresThem) {
  Model model;
  const std::vector<float> original = model.weights;
  hosts::Gpt2Lora lora(model.gpt2, {.rank = 2, .alpha = 4}, 7);
  set_random_factors(lora);
  const double adapted = loss_by_formula(model, merged(model, lora));
  lora.merge();
  Adapted plain;
  for (Index l = 0; l < layers; ++l) {
    plain[static_cast<std::size_t>(l)] = {
        model.rows_of(&ParameterTensors::qkvw, l * 3 * channels, 3 * channels, channels),
        model.rows_of(&ParameterTensors::attprojw, l * channels, channels, channels)};
  }
  EXPECT_NEAR(loss_by_formula(model, plain), adapted, loss_tolerance);
  lora.unmerge();
  for (std::size_t i = 0; i < original.size(); ++i) ASSERT_EQ(bits_of(model.weights[i]), bits_of(original[i])) << i;
}

TEST(Gpt2Lora, TrainsAdaptersAlone) {
  Model model;
  const std::vector<float> original = model.weights;
  hosts::Gpt2Lora lora(model.gpt2, {.rank = 2, .alpha = 4}, 7);
  AdamW<float> optimizer({.learning_rate = 2e-2, .weight_decay = 0});
  forward(lora);
  const float before = model.gpt2.mean_loss;
  for (int step = 0; step < 60; ++step) {
    forward(lora);
    lora.backward();
    lora.update(optimizer);
  }
  forward(lora);
  EXPECT_LT(model.gpt2.mean_loss, before * 2 / 3);
  EXPECT_EQ(model.weights, original);
  const auto memory = lora.memory();
  EXPECT_EQ(memory.parameters, sizeof(float) * layers * (3 * 2 * (4 + 4) + 2 * (4 + 4)));
  EXPECT_EQ(memory.gradients, memory.parameters);
  EXPECT_EQ(memory.optimizer, 2 * memory.parameters);
}

TEST(Gpt2Lora, ABatchOfAnotherSizeIsRefused) {
  Model model;
  hosts::Gpt2Lora lora(model.gpt2, {.rank = 2, .alpha = 4}, 7);
  forward(lora);
  EXPECT_THROW(lora.forward(inputs.data(), targets.data(), batch, length - 1), ShapeError);
}

}  // namespace
}  // namespace lora::testing::llm_c_test
