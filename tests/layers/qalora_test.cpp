// SPDX-License-Identifier: MIT
// QALoRA against loops that pool the inputs as PEFT does, over weights of many and of few bits, and what it refuses.
#include "lora/adapter/qalora.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>

#include "lora/adapter/dropout.hpp"
#include "lora/layers/conv.hpp"
#include "lora/layers/embedding.hpp"
#include "lora/layers/linear.hpp"
#include "lora/weight/quantized.hpp"
#include "support/bits.hpp"
#include "support/message_of.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace qalora_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

constexpr Index outputs = 10;
constexpr Index inputs = 64;
constexpr Index group = 4;  // so that the factor, 16 / 4, is not 1
constexpr Index samples = 5;
const LoraConfig qalora{.rank = 3, .alpha = 4.5, .use_qalora = true, .qalora_group_size = group};

// Y = X W^T + s B A pooled, where pooled(i, q) = mean of x(i, j) over group q, times the number of groups.
Matrix<double> pooled_answer(const Matrix<double>& w, const Matrix<double>& a, const Matrix<double>& b, double s,
                             const Matrix<double>& x, const Matrix<double>& dropped) {
  const Index groups = inputs / group;
  Matrix<double> y(x.rows(), outputs);
  for (Index i = 0; i < x.rows(); ++i) {
    for (Index o = 0; o < outputs; ++o) {
      double sum = 0;
      for (Index j = 0; j < inputs; ++j) sum += w(o, j) * x(i, j);
      for (Index p = 0; p < a.rows(); ++p) {
        double down = 0;
        for (Index q = 0; q < groups; ++q) {
          double mean = 0;
          for (Index j = 0; j < group; ++j) mean += dropped(i, q * group + j) / static_cast<double>(group);
          down += a(p, q) * mean * static_cast<double>(groups);
        }
        sum += s * b(o, p) * down;
      }
      y(i, o) = sum;
    }
  }
  return y;
}

// The inputs an adapter of this dropout and seed sees in a layer's first step.
Matrix<double> dropped_inputs(const Matrix<double>& x, double dropout, std::uint64_t seed) {
  if (dropout == 0) return x;
  SerialExecutor executor;
  DropoutBits bits;
  bits.draw(dropout, seed, {0, 0}, x.rows(), x.cols(), executor);
  const auto keep = bits.mask<double>(dropout);
  Matrix<double> result(x.rows(), x.cols());
  for (Index i = 0; i < x.rows(); ++i)
    for (Index j = 0; j < x.cols(); ++j) result(i, j) = keep.keeps(i, j) ? x(i, j) / (1 - dropout) : 0.0;
  return result;
}

template <class Weight>
Weight weight_of(const Matrix<float>& w) {
  if constexpr (requires { typename Weight::Format; }) return Weight::quantize(view_of(w));
  if constexpr (!requires { typename Weight::Format; }) {
    const Matrix<typename Weight::Scalar> values = w.template cast<typename Weight::Scalar>();
    return Weight(view_of(values));
  }
}

template <class Weight>
class Qalora : public ::testing::Test {
 protected:
  using Scalar = typename Weight::Scalar;
  using Layer = LoraLinear<Scalar, Weight>;
  static constexpr double tolerance = 2000 * std::numeric_limits<Scalar>::epsilon();

  [[nodiscard]] static Matrix<Scalar> numbers(Index rows, Index cols, std::uint64_t seed) {
    return random_matrix<float>(rows, cols, seed).template cast<Scalar>();
  }
  [[nodiscard]] static Layer make(double dropout = 0) {
    LoraConfig config = qalora;
    config.dropout = dropout;
    Layer layer(weight_of<Weight>(random_matrix<float>(outputs, inputs, 1)), config, 7);
    layer.set_factors(numbers(3, inputs / group, 2), numbers(outputs, 3, 3));
    return layer;
  }
  [[nodiscard]] static Matrix<double> wide(const Matrix<Scalar>& m) { return m.template cast<double>(); }
  [[nodiscard]] static Matrix<double> expected(const Layer& layer, const Matrix<double>& a, const Matrix<double>& b,
                                               const Matrix<double>& x, double dropout) {
    const auto s = static_cast<double>(layer.scaling());
    return pooled_answer(wide(layer.base_weight()), a, b, s, x, dropped_inputs(x, dropout, layer.seed()));
  }

  const Matrix<Scalar> x = numbers(samples, inputs, 4);
  const Matrix<Scalar> dy = numbers(samples, outputs, 5);
};
using Weights = ::testing::Types<PackedWeight<double>, PackedWeight<float>, QuantizedWeight<formats::Q4_0>,
                                 QuantizedWeight<formats::NF4<64>>>;
TYPED_TEST_SUITE(Qalora, Weights);

TYPED_TEST(Qalora, FactorsHaveAColumnForEachGroup) {
  auto layer = TestFixture::make();
  EXPECT_EQ(layer.lora_A().rows(), 3);
  EXPECT_EQ(layer.lora_A().cols(), inputs / group);
  EXPECT_EQ(layer.lora_B().cols(), 3);
  EXPECT_EQ(layer.trainable_parameter_count(), 3 * (inputs / group + outputs));
}

TYPED_TEST(Qalora, AnswersAreThoseOfPooledInputs) {
  for (const double dropout : {0.0, 0.25}) {
    auto layer = TestFixture::make(dropout);
    const Matrix<double> a = this->wide(layer.lora_A()), b = this->wide(layer.lora_B()), seen = this->wide(this->x);
    const Matrix<double> trained = this->wide(layer.forward(this->x));
    EXPECT_LT((trained - this->expected(layer, a, b, seen, dropout)).cwiseAbs().maxCoeff(), this->tolerance);
    const Matrix<double> inferred = this->wide(layer.infer(this->x));
    EXPECT_LT((inferred - this->expected(layer, a, b, seen, 0)).cwiseAbs().maxCoeff(), this->tolerance);
  }
}

// <dY, Y> is linear in every single number, so that a central difference has the gradient up to rounding in double.
TYPED_TEST(Qalora, GradientsAreDifferencesOfThePooledAnswers) {
  for (const double dropout : {0.0, 0.25}) {
    auto layer = TestFixture::make(dropout);
    layer.forward(this->x);
    const Matrix<double> dx = this->wide(layer.backward(this->dy));
    Matrix<double> a = this->wide(layer.lora_A()), b = this->wide(layer.lora_B()), seen = this->wide(this->x);
    const auto loss = [&] {
      return this->expected(layer, a, b, seen, dropout).cwiseProduct(this->wide(this->dy)).sum();
    };
    const auto expect_gradient = [&](Matrix<double>& of, const Matrix<double>& gradient, Index step) {
      for (Index i = 0; i < of.size(); i += step) {
        const double before = of.data()[i];
        of.data()[i] = before + 1;
        const double above = loss();
        of.data()[i] = before - 1;
        const double below = loss();
        of.data()[i] = before;
        EXPECT_NEAR(gradient.data()[i], (above - below) / 2, this->tolerance * 10) << i;
      }
    };
    expect_gradient(a, this->wide(layer.gradients().A), 1);
    expect_gradient(b, this->wide(layer.gradients().B), 1);
    expect_gradient(seen, dx, 7);
  }
}

TYPED_TEST(Qalora, TheDeltaOfTheWeightIsExact) {
  auto layer = TestFixture::make();
  const Matrix<double> delta = this->wide(layer.delta_weight());
  const Matrix<double> unit = Matrix<double>::Identity(inputs, inputs);
  const Matrix<double> answers =
      pooled_answer(Matrix<double>::Zero(outputs, inputs), this->wide(layer.lora_A()), this->wide(layer.lora_B()),
                    static_cast<double>(layer.scaling()), unit, unit);
  EXPECT_LT((delta - answers.transpose()).cwiseAbs().maxCoeff(), this->tolerance);
}

TYPED_TEST(Qalora, ARowThatChoosesTheAdapterHasItsBits) {
  auto layer = TestFixture::make();
  layer.add_adapter("plain", {.rank = 2}, 3);
  const auto alone = layer.infer(this->x);
  const auto chosen =
      layer.infer(this->x, std::vector<std::string>{"default", "__base__", "default", "plain", "default"});
  for (const Index i : {0, 2, 4}) EXPECT_TRUE(same_bits(chosen.row(i), alone.row(i)));
}

TEST(QaloraLayer, MergesAndComesBackBitForBit) {
  LoraLinear<double> layer(random_matrix<double>(outputs, inputs, 1), qalora, 7);
  layer.set_factors(random_matrix<double>(3, inputs / group, 2), random_matrix<double>(outputs, 3, 3));
  const auto x = random_matrix<double>(samples, inputs, 4);
  const Matrix<double> before = layer.weight(), y = layer.infer(x);
  layer.merge();
  EXPECT_TRUE(same_bits(layer.weight(), before + layer.delta_weight()));
  EXPECT_LT((layer.infer(x) - y).cwiseAbs().maxCoeff(), 1e-12);
  layer.unmerge();
  EXPECT_TRUE(same_bits(layer.weight(), before));
}

TEST(QaloraLayer, RefusesWhatPeftDoesNotHave) {
  const auto w = random_matrix<float>(outputs, inputs, 1);
  const auto refusal = [&](LoraConfig config) {
    config.use_qalora = true;
    return message_of<ConfigError>([&] { LoraLinear<float>(w, config, 1); });
  };
  EXPECT_EQ(refusal({.qalora_group_size = 7}),
            "LoraLinear::add_adapter: qalora_group_size: expected a divisor of in_features, 64, got 7");
  EXPECT_EQ(refusal({.qalora_group_size = 0}), "LoraLinear: qalora_group_size: expected 1 or more, got 0");
  EXPECT_EQ(refusal({.use_dora = true}), "LoraLinear: use_dora: expected false with use_qalora, got true");
  EXPECT_EQ(refusal({.lora_bias = true}), "LoraLinear: lora_bias: expected false with use_qalora, got true");
  EXPECT_EQ(refusal({.rank = 0}), "LoraLinear: use_qalora: expected rank 1 or more with it, got rank 0");
  for (const InitLoraWeights init : {InitLoraWeights::pissa, InitLoraWeights::olora}) {
    EXPECT_EQ(refusal({.init_lora_weights = init}),
              "LoraLinear: init_lora_weights: expected neither pissa nor olora with use_qalora, got one of them");
  }
  const LoraConfig config{.use_qalora = true, .qalora_group_size = 2};
  EXPECT_EQ(message_of<ConfigError>([&] { LoraEmbedding<float>(random_matrix<float>(6, 4, 1), config, 1); }),
            "LoraEmbedding::add_adapter: use_qalora: expected false for an embedding, got true");
  const ConvGeometry<1> geometry{.in_channels = 2, .out_channels = 3, .kernel = {2}};
  EXPECT_EQ(message_of<ConfigError>([&] { LoraConv<float, 1>(random_matrix<float>(3, 4, 1), geometry, config, 1); }),
            "LoraConv::add_adapter: use_qalora: expected false for a convolution, got true");
}

// An adapter whose factors would fit, of a layer with another number of inputs.
TEST(QaloraLayer, RefusesAnAdapterWhoseGroupsDoNotFillTheInputs) {
  LoraLinear<float> of_sixteen(random_matrix<float>(4, 16, 1), {.rank = 2, .use_qalora = true}, 1);
  LoraLinear<float> of_more(random_matrix<float>(4, 20, 1), {.rank = 0}, 1);
  EXPECT_EQ(message_of<ConfigError>([&] { of_more.add_adapter(of_sixteen.adapter("default")); }),
            "LoraLinear::add_adapter: qalora_group_size: expected a divisor of in_features, 20, got 16");
}

// A group of one input still has the factor in_features, as in PEFT.
TEST(WidenFactor, RepeatsColumnsTimesTheFactor) {
  const auto a = random_matrix<double>(2, 3, 1);
  Matrix<double> wide(2, 6);
  widen_factor<double>(view_of(a), 2, view_of(wide));
  for (Index j = 0; j < 6; ++j) EXPECT_TRUE(same_bits(wide.col(j), 1.5 * a.col(j / 2)));
  Matrix<double> narrow(2, 3);
  widen_factor<double>(view_of(a), 1, view_of(narrow));
  EXPECT_TRUE(same_bits(narrow, 3 * a));
  widen_factor<double>(view_of(a), 0, view_of(narrow));
  EXPECT_TRUE(same_bits(narrow, a));
}

}  // namespace
}  // namespace qalora_test
}  // namespace lora
