// SPDX-License-Identifier: MIT
// Linear layers and stacked ones: their cases for the laws, and what is theirs alone.
#include "lora/layers/linear.hpp"

#include <array>
#include <gtest/gtest.h>
#include <string>
#include <thread>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>
#include <vector>

#include "lora/adapter/starts.hpp"
#include "lora/layers/merged_linear.hpp"
#include "lora/layers/tensor.hpp"
#include "lora/weight/dense.hpp"
#include "lora/weight/matrix_weight.hpp"
#include "lora/weight/packed.hpp"
#include "lora/weight/quantized.hpp"
#include "lora/weight/transposed.hpp"
#include "support/bits.hpp"
#include "support/message_of.hpp"
#include "support/native_layer.hpp"

namespace lora::linear_test {
namespace {

using testing::AnyLayer;
using testing::CasePointer;
using testing::LayerCase;
using testing::Lies;
using testing::random_matrix;
using testing::random_vector;
using testing::Rows;
using testing::same_bits;
using testing::WideRows;

constexpr Index out_features = 36;

// The naive product, of all outputs or of blocks of 12.
class LinearLayerCase : public LayerCase {
 public:
  std::vector<Index> blocks;  ///< first output of each
  Index features = 0;         ///< outputs of a block
  Index in_features = 21;

  void set_blocks(const std::vector<Index>& first, Index outputs_of_each) {
    blocks = first;
    features = outputs_of_each;
    for (const Index begin : blocks)
      for (Index j = 0; j < features; ++j) adapted.push_back(begin + j);
    starts_from_weight = features == out_features;
  }
  [[nodiscard]] Rows inputs(Index samples, std::uint64_t seed) const override {
    return random(samples, in_features, seed);
  }
  [[nodiscard]] Index output_width() const override { return out_features; }
  [[nodiscard]] Index longest_sum() const override { return in_features + out_features; }
  [[nodiscard]] WideRows apply(const WideRows& w, const WideRows& x) const override { return x * w.transpose(); }
  [[nodiscard]] WideRows adjoint(const WideRows& w, const WideRows& dy) const override { return dy * w; }
  [[nodiscard]] WideRows outer(const WideRows& dy, const WideRows& x) const override { return dy.transpose() * x; }
  // Block e of B multiplies the rows [e r, (e + 1) r) of A.
  [[nodiscard]] WideRows spread(const WideRows& b, Index a_rows) const override {
    WideRows whole = WideRows::Zero(out_features, a_rows);
    for (std::size_t e = 0; e < blocks.size(); ++e) {
      const auto at = static_cast<Index>(e);
      whole.block(blocks[e], at * b.cols(), features, b.cols()) = b.middleRows(at * features, features);
    }
    return whole;
  }
  [[nodiscard]] WideRows gathered(const WideRows& whole, Index b_cols) const override {
    WideRows b(features * static_cast<Index>(blocks.size()), b_cols);
    for (std::size_t e = 0; e < blocks.size(); ++e) {
      const auto at = static_cast<Index>(e);
      b.middleRows(at * features, features) = whole.block(blocks[e], at * b_cols, features, b_cols);
    }
    return b;
  }
};

template <class Layer, bool stacked>
class Case final : public LinearLayerCase {
  using Weight = typename Layer::Weight;
  using Scalar = typename Layer::Scalar;

 public:
  Case(std::string of, Lies lies, bool read_only = false, bool with_bias = true, Index inputs = 21)
      : lies_(lies), read_only_(read_only) {
    in_features = inputs;
    group = inputs % 4 == 0 ? 4 : 7;
    name = std::move(of);
    layer_name = stacked ? "MergedLinear" : "LoraLinear";
    epsilon = std::numeric_limits<Scalar>::epsilon();
    mergeable = !read_only && MergeableWeight<Weight>;
    if (mergeable) storage = storage_of<Weight>;
    w0 = testing::stored_values<Weight>(random(out_features, in_features, 1));
    if (with_bias) bias0 = random(1, out_features, 2);
    stacked ? set_blocks({0, 24}, 12) : set_blocks({0}, out_features);
  }

  [[nodiscard]] std::unique_ptr<AnyLayer> make(const LoraConfig& config, std::uint64_t seed) const override {
    LoraConfig own = config;
    own.fan_in_fan_out = lies_ == Lies::by_input;
    std::shared_ptr<std::vector<Scalar>> memory;
    auto weight = testing::weight_over<Weight>(w0, lies_, read_only_, memory);
    const RowVector<Scalar> bias = bias0.size() > 0 ? RowVector<Scalar>(bias0.cast<Scalar>()) : RowVector<Scalar>();
    const bool bare = bias.size() == 0;
    if constexpr (stacked) {
      const std::vector<bool> enabled = {true, false, true};
      return wrap(
          bare ? Layer(std::move(weight), enabled, own, seed) : Layer(std::move(weight), bias, enabled, own, seed),
          memory);
    } else {
      return wrap(bare ? Layer(std::move(weight), own, seed) : Layer(std::move(weight), bias, own, seed), memory);
    }
  }

 private:
  [[nodiscard]] std::unique_ptr<AnyLayer> wrap(Layer&& layer, std::shared_ptr<std::vector<Scalar>> memory) const {
    return std::make_unique<testing::NativeLayer<Layer, testing::AsRows>>(
        std::move(layer), testing::AsRows{}, out_features, lies_ == Lies::by_input, std::move(memory));
  }
  Lies lies_;
  bool read_only_;
};

template <class Format>
using Quantized = QuantizedWeight<Format>;
template <class Weight>
using Plain = Case<LoraLinear<typename Weight::Scalar, Weight>, false>;
template <class Weight>
using Stacked = Case<MergedLinear<typename Weight::Scalar, Weight>, true>;

}  // namespace
}  // namespace lora::linear_test

namespace lora::testing {

std::vector<CasePointer> linear_cases() {
  using linear_test::Plain, linear_test::Stacked, linear_test::Quantized;
  return {std::make_shared<Plain<PackedWeight<float>>>("LinearPackedFloat", Lies::by_output),
          std::make_shared<Plain<PackedWeight<double>>>("LinearPackedTransposedDouble", Lies::by_input),
          std::make_shared<Plain<DenseWeight<float>>>("LinearDenseTransposedFloat", Lies::by_input),
          std::make_shared<Plain<DenseWeight<double>>>("LinearDenseDouble", Lies::by_output),
          std::make_shared<Plain<DenseWeight<double>>>("LinearReadOnlyDouble", Lies::by_output, true),
          std::make_shared<Plain<MatrixWeight<float>>>("LinearMatrixNoBiasFloat", Lies::by_output, false, false),
          std::make_shared<Stacked<PackedWeight<float>>>("StackedPackedFloat", Lies::by_output),
          std::make_shared<Stacked<DenseWeight<double>>>("StackedDenseTransposedDouble", Lies::by_input),
          std::make_shared<Stacked<MatrixWeight<double>>>("StackedMatrixDouble", Lies::by_output),
          std::make_shared<Plain<Quantized<formats::BF16>>>("LinearBf16Float", Lies::by_output),
          std::make_shared<Stacked<Quantized<formats::F16>>>("StackedF16Float", Lies::by_output),
          std::make_shared<Plain<Quantized<formats::Q5_1>>>("LinearQ5_1Float", Lies::by_output, false, true, 32),
          std::make_shared<Stacked<Quantized<formats::NF4<32>>>>("StackedNf4TransposedFloat", Lies::by_input, false,
                                                                 true, 32)};
}

}  // namespace lora::testing

namespace lora::linear_test {
namespace {

using testing::message_of;

LoraLinear<float> small_layer(const LoraConfig& config = {.rank = 2, .alpha = 3}) {
  LoraLinear<float> layer(random_matrix<float>(6, 4, 1), random_vector<float>(6, 2), config, 3);
  if (config.rank > 0) layer.set_factors(random_matrix<float>(2, 4, 4), random_matrix<float>(6, 2, 5));
  return layer;
}

TEST(LinearLayer, ABiasIsAnyVectorOfNumbers) {
  const auto w = random_matrix<float>(6, 4, 1);
  const auto x = random_matrix<float>(3, 4, 2);
  const std::vector<float> bias = {1, 2, 3, 4, 5, 6};
  const std::array<float, 6> fixed = {1, 2, 3, 4, 5, 6};
  const Eigen::Map<const Eigen::VectorXf> column(bias.data(), 6);
  const LoraConfig config{.rank = 2};
  const Matrix<float> expected = LoraLinear<float>(w, column, config, 1).infer(x);
  EXPECT_TRUE(same_bits(LoraLinear<float>(w, bias, config, 1).infer(x), expected));
  EXPECT_TRUE(same_bits(LoraLinear<float>(w, fixed, config, 1).infer(x), expected));
  EXPECT_TRUE(same_bits(LoraLinear<float>(w, column.transpose(), config, 1).infer(x), expected));
  EXPECT_TRUE(same_bits(LoraLinear<float>(PackedWeight<float>(view_of(w)), bias, config, 1).infer(x), expected));
  EXPECT_EQ(message_of<ShapeError>([&] { LoraLinear<float>(w, std::vector<float>(5), config, 1); }),
            "LoraLinear: bias: expected 6 elements, got 5");
}

// A row's bits depend neither on the others nor on how the batch is given.
TEST(LinearLayer, EveryFormOfAnInputGivesTheSameBits) {
  const auto layer = small_layer();
  const auto x = random_matrix<float>(12, 4, 9);
  const Matrix<float> y = layer.infer(x);
  const testing::ColumnMajor<float> columns = x;
  EXPECT_TRUE(same_bits(layer.infer(columns), y));
  EXPECT_TRUE(same_bits(layer.infer(x.middleRows(3, 5)), y.middleRows(3, 5)));
  EXPECT_TRUE(same_bits(layer.infer(columns.middleRows(3, 5)), y.middleRows(3, 5)));
  EXPECT_TRUE(same_bits(layer.infer(Eigen::Map<const Matrix<float>>(x.data(), 12, 4)), y));
  EXPECT_TRUE(same_bits(layer.infer(x + Matrix<float>::Zero(12, 4)), y));
  EXPECT_TRUE(same_bits(layer.infer(x.array()), y));
  const Eigen::VectorXf column = x.row(7).transpose();
  const RowVector<float> row = x.row(7);
  const Eigen::VectorXf answer = layer.infer(column);
  EXPECT_TRUE(same_bits(answer.transpose(), y.row(7)));
  EXPECT_TRUE(same_bits(layer.infer(row), y.row(7)));
  EXPECT_TRUE(same_bits(layer.infer(x.row(7)), y.row(7)));
  EXPECT_EQ(layer.infer(Matrix<float>(0, 4)).rows(), 0);
}

template <int rank>
using Tensor = Eigen::Tensor<float, rank, Eigen::RowMajor>;

TEST(LinearLayer, TensorsOfAnyRankAreRowsOfTheirLastDimension) {
  auto layer = small_layer({.rank = 2, .alpha = 3, .dropout = 0.3});
  const auto x = random_matrix<float>(12, 4, 9);
  const auto dy = random_matrix<float>(12, 6, 8);
  const Eigen::TensorMap<const Tensor<3>> x3(x.data(), 3, 4, 4);
  const Eigen::TensorMap<const Tensor<4>> x4(x.data(), 2, 2, 3, 4);
  const auto rows_of = [](const auto& tensor, Index cols) {
    return Matrix<float>(Eigen::Map<const Matrix<float>>(tensor.data(), tensor.size() / cols, cols));
  };
  EXPECT_TRUE(same_bits(rows_of(layer.infer(x3), 6), layer.infer(x)));
  const Tensor<4> y4 = layer.infer(x4);
  EXPECT_EQ(y4.dimension(2), 3);
  EXPECT_EQ(y4.dimension(3), 6);
  EXPECT_TRUE(same_bits(rows_of(y4, 6), layer.infer(x)));

  auto other = layer;
  const Matrix<float> y = layer.forward(x);
  const Matrix<float> dx = layer.backward(dy);
  EXPECT_TRUE(same_bits(rows_of(other.forward(x3), 6), y));
  const Tensor<3> dx3 = other.backward(Eigen::TensorMap<const Tensor<3>>(dy.data(), 3, 4, 6));
  EXPECT_EQ(dx3.dimension(2), 4);
  EXPECT_TRUE(same_bits(rows_of(dx3, 4), dx));
  EXPECT_TRUE(same_bits(other.gradients().A, layer.gradients().A));

  const Eigen::TensorMap<const Tensor<3>> wrong(x.data(), 3, 2, 8);
  EXPECT_EQ(message_of<ShapeError>([&] { static_cast<void>(layer.infer(wrong)); }),
            "LoraLinear::infer: x: expected N x 4, got 6 x 8");
}

TEST(LinearLayer, PartsOfOneBufferServeAsInputAndOutput) {
  const auto layer = small_layer();
  Matrix<float> buffer = random_matrix<float>(5, 10, 3);
  const Matrix<float> x = buffer.leftCols(4);
  Workspace workspace;
  layer.infer(buffer.leftCols(4), buffer.rightCols(6), workspace);
  EXPECT_TRUE(same_bits(buffer.rightCols(6), layer.infer(x)));
  EXPECT_TRUE(same_bits(buffer.leftCols(4), x));
}

// As a network over raw buffers calls it: rows with gaps between them, inputs that cannot be written.
TEST(LinearLayer, ViewsOfRawBuffersGiveTheBitsThatMatricesGive) {
  LoraLinear<float> layer(random_matrix<float>(6, 4, 1), {.rank = 2}, 3);
  layer.set_factors(random_matrix<float>(2, 4, 2), random_matrix<float>(6, 2, 3));
  const auto x = random_matrix<float>(5, 9, 4);
  const auto dy = random_matrix<float>(5, 6, 5);
  const MatrixView<const float> x_view{x.data(), 5, 4, /*row_stride=*/9};
  LoraLinear<float>::Tape tape;
  Workspace workspace;

  Matrix<float> y(5, 6), dx(5, 4);
  auto gradients = layer.make_gradients();
  layer.forward(x.leftCols(4), tape, y, workspace);
  layer.backward(x.leftCols(4), tape, dy, gradients, dx, workspace);

  std::vector<float> y_memory(5 * 6), dx_memory(5 * 7, 42.0F);
  const MatrixView<float> y_view{y_memory.data(), 5, 6}, dx_view{dx_memory.data(), 5, 4, /*row_stride=*/7};
  auto view_gradients = layer.make_gradients();
  layer.forward(x_view, tape, y_view, workspace);
  layer.backward(x_view, tape, view_of(dy), view_gradients, dx_view, workspace);

  EXPECT_TRUE(same_bits(Matrix<float>(y_view.map()), y));
  EXPECT_TRUE(same_bits(Matrix<float>(dx_view.map()), dx));
  EXPECT_TRUE(same_bits(view_gradients.A, gradients.A));
  EXPECT_TRUE(same_bits(view_gradients.B, gradients.B));
  EXPECT_EQ(dx_memory[4], 42.0F);
  EXPECT_TRUE(same_bits(layer.infer(x_view), y));
}

TEST(LinearLayer, OverlappingInputAndOutputAreRefused) {
  auto layer = small_layer();
  Matrix<float> buffer = random_matrix<float>(5, 10, 3);
  Workspace workspace;
  EXPECT_EQ(message_of<ShapeError>([&] { layer.infer(buffer.leftCols(4), buffer.middleCols(3, 6), workspace); }),
            "LoraLinear::infer: y: expected memory apart from x, got overlapping memory");
  EXPECT_EQ(message_of<ShapeError>([&] { layer.forward(buffer.leftCols(4), buffer.middleCols(3, 6)); }),
            "LoraLinear::forward: y: expected memory apart from x, got overlapping memory");
  layer.forward(random_matrix<float>(5, 4, 3));
  EXPECT_EQ(message_of<ShapeError>([&] { layer.backward(buffer.leftCols(6), buffer.middleCols(5, 4)); }),
            "LoraLinear::backward: dx: expected memory apart from dy, got overlapping memory");
}

TEST(LinearLayer, ErrorsNameCallArgumentAndShapes) {
  auto layer = small_layer();
  Matrix<float> y(3, 6), dx(3, 4);
  Workspace workspace;
  LoraLinear<float>::Tape tape;
  auto gradients = layer.make_gradients();
  const auto x = random_matrix<float>(3, 4, 1);
  const auto shape_error = [](const auto& body) { return message_of<ShapeError>(body); };
  EXPECT_EQ(shape_error([&] { static_cast<void>(layer.infer(Matrix<float>(3, 5))); }),
            "LoraLinear::infer: x: expected N x 4, got 3 x 5");
  EXPECT_EQ(shape_error([&] {
              Matrix<float> low(2, 6);
              layer.infer(x, low, workspace);
            }),
            "LoraLinear::infer: y: expected 3 x 6, got 2 x 6");
  EXPECT_EQ(shape_error([&] {
              layer.infer(x, std::vector<int>{0, 0}, y, workspace);
            }),
            "LoraLinear::infer: choices: expected 3 elements, one a row, got 2");
  layer.forward(x, tape, y, workspace);
  EXPECT_EQ(shape_error([&] { layer.backward(x, tape, Matrix<float>(3, 5), gradients, workspace); }),
            "LoraLinear::backward: dy: expected 3 x 6, got 3 x 5");
  EXPECT_EQ(shape_error([&] { layer.backward(Matrix<float>(2, 4), tape, y, gradients, workspace); }),
            "LoraLinear::backward: x: expected 3 x 4, got 2 x 4");
  EXPECT_EQ(shape_error([&] {
              Matrix<float> low(2, 4);
              layer.backward(x, tape, y, gradients, low, workspace);
            }),
            "LoraLinear::backward: dx: expected 3 x 4, got 2 x 4");
  gradients.A.resize(3, 4);
  EXPECT_EQ(shape_error([&] { layer.backward(x, tape, y, gradients, dx, workspace); }),
            "LoraLinear::backward: gradients.A: expected 2 x 4, got 3 x 4");
  EXPECT_EQ(shape_error([&] { layer.set_factors(Matrix<float>(3, 4), Matrix<float>(6, 2)); }),
            "LoraLinear::set_factors: A: expected 2 x 4, got 3 x 4");
  EXPECT_EQ(shape_error([&] { layer.set_lora_bias(RowVector<float>(6)); }),
            "LoraLinear::set_lora_bias: lora_bias: expected 1 x 0, got 1 x 6");
  EXPECT_EQ(shape_error([&] { LoraLinear<float>(Matrix<float>(0, 4), LoraConfig{}, 1); }),
            "LoraLinear: weight: expected at least 1 x 1, got 0 x 4");
  EXPECT_EQ(message_of<ConfigError>([&] { layer.set_adapter("other"); }),
            "LoraLinear::set_adapters: adapter: expected one of \"default\", got \"other\"");
  EXPECT_EQ(message_of<ConfigError>([&] { LoraLinear<float>(random_matrix<float>(6, 4, 1), {.rank = -2}, 1); }),
            "LoraLinear: rank: expected 0 or more, got -2");
  EXPECT_EQ(
      message_of<ConfigError>([&] { layer.add_adapter("a.b", {}, 1); }),
      "LoraLinear::add_adapter: name: expected a name without dots other than \"\" and \"__base__\", got \"a.b\"");
  EXPECT_EQ(message_of<ConfigError>([&] {
              layer.infer(x, std::vector<int>{0, 1, 0}, y, workspace);
            }),
            "LoraLinear::infer: choices: expected positions from -1 to 0, got 1");
}

TEST(LinearLayer, NamesOfParametersAreThoseOfPeft) {
  auto layer = LoraLinear<float>(random_matrix<float>(6, 4, 1), random_vector<float>(6, 2),
                                 {.rank = 2, .lora_bias = true, .bias = BiasMode::all}, 3);
  layer.add_adapter("other", {.rank = 2, .use_dora = true}, 1);
  layer.set_adapters({"default", "other"});
  testing::Names names;
  for (const auto& parameter : layer.parameters()) names.push_back(parameter.name());
  EXPECT_EQ(names, (testing::Names{"lora_A.weight", "lora_B.weight", "lora_B.bias", "bias", "lora_A.other.weight",
                                   "lora_B.other.weight", "lora_magnitude_vector.other.weight"}));
}

TEST(StackedLinear, WantsProjectionsThatDivideTheOutputs) {
  const auto w = random_matrix<float>(6, 4, 1);
  EXPECT_EQ(message_of<ConfigError>([&] {
              MergedLinear<float>(w, {true, false, true, true}, LoraConfig{}, 1);
            }),
            "MergedLinear: enable_lora: expected a number of projections that divides out_features, 6, got 4");
  EXPECT_EQ(message_of<ConfigError>([&] { MergedLinear<float>(w, {}, LoraConfig{}, 1); }),
            "MergedLinear: enable_lora: expected one entry for each projection, got none");
  EXPECT_EQ(message_of<ConfigError>([&] {
              MergedLinear<float>(w, {false, false}, LoraConfig{}, 1);
            }),
            "MergedLinear::add_adapter: enable_lora: expected at least one enabled projection with rank 1 or more, got "
            "none");
  EXPECT_THROW(MergedLinear<float>(w, {true, false}, {.init_lora_weights = InitLoraWeights::pissa}, 1), ConfigError);
  EXPECT_EQ(MergedLinear<float>(w, {false, false}, {.rank = 0}, 1).adapter_count(), 0);
}

// All projections enabled are one linear layer.
TEST(StackedLinear, TheOutputsOfProjectionsThatAreNotEnabledAreThoseOfTheFrozenLayer) {
  const auto w = random_matrix<float>(36, 21, 1);
  const auto x = random_matrix<float>(5, 21, 2);
  MergedLinear<float> layer(w, {true, false, true}, {.rank = 3}, 1);
  layer.set_factors(random_matrix<float>(6, 21, 3), random_matrix<float>(24, 3, 4));
  const Matrix<float> frozen = LoraLinear<float>(w, {.rank = 0}, 1).infer(x);
  EXPECT_TRUE(same_bits(layer.infer(x).middleCols(12, 12), frozen.middleCols(12, 12)));
  EXPECT_FALSE(same_bits(layer.infer(x).leftCols(12), frozen.leftCols(12)));
  EXPECT_EQ(layer.infer(x).cols(), 36);
}

TEST(LinearLayer, ConcurrentInferenceOverManyFormsOfInput) {
  const auto layer = small_layer();
  const auto x = random_matrix<float>(12, 4, 9);
  const Matrix<float> y = layer.infer(x);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (Index i = 0; i < 12; ++i) {
        const Index row = (i + 3 * t) % 12;
        EXPECT_TRUE(same_bits(layer.infer(x.row(row)), y.row(row)));
        const Eigen::TensorMap<const Tensor<3>> tensor(x.data(), 3, 4, 4);
        EXPECT_EQ(layer.infer(tensor)(row / 4, row % 4, 0), y(row, 0));
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

// The adapters of two layers may have the same numbers.
TEST(LoraLinear, RefusesTheTapeOfALayerThatDiffersInOutputsOrInTheOrderOfRanks) {
  const auto x = random_matrix<float>(3, 4, 1);
  const auto refused = [&](LoraLinear<float>& layer, LoraLinear<float>& other) {
    LoraLinear<float>::Tape tape;
    Workspace workspace;
    Matrix<float> y(3, other.out_features());
    other.forward(x, tape, y, workspace);
    auto gradients = layer.make_gradients();
    const Matrix<float> dy = Matrix<float>::Ones(3, layer.out_features());
    EXPECT_THROW(layer.backward(x, tape, dy, gradients, workspace), StateError);
    EXPECT_TRUE(gradients.A.isZero(0));
  };
  const LoraConfig dora{.rank = 2, .use_dora = true};
  LoraLinear<float> six(random_matrix<float>(6, 4, 1), dora, 3), five(random_matrix<float>(5, 4, 1), dora, 3);
  refused(six, five);
  LoraLinear<float> one_two(random_matrix<float>(6, 4, 1), {.rank = 1}, 3);
  LoraLinear<float> two_one(random_matrix<float>(6, 4, 1), {.rank = 2}, 3);
  one_two.add_adapter("other", {.rank = 2}, 1);
  two_one.add_adapter("other", {.rank = 1}, 1);
  for (auto* layer : {&one_two, &two_one}) layer->set_adapters({"default", "other"});
  refused(one_two, two_one);
}

TEST(LoraLinear, SaysWhatItsAdaptersHold) {
  auto layer = small_layer({.rank = 2, .alpha = 3, .lora_bias = true});
  layer.add_adapter("other", {.rank = 4, .alpha = 6, .use_dora = true}, 1);
  const auto row = random_vector<float>(6, 9);
  layer.set_lora_bias(row);
  EXPECT_TRUE(same_bits(layer.lora_bias(), row));
  EXPECT_TRUE(layer.has_bias());
  EXPECT_EQ(layer.adapter_names(), (testing::Names{"default", "other"}));
  EXPECT_EQ(layer.adapter_index("other"), 1);
  EXPECT_THROW(static_cast<void>(layer.adapter_index("none")), ConfigError);
  EXPECT_EQ(layer.magnitude("default").size(), 0);
  EXPECT_TRUE(same_bits(layer.magnitude("other"), layer.adapter("other").magnitude));
  layer.set_scale("other", 4);
  EXPECT_EQ(layer.scale("other"), 4);
  EXPECT_EQ(layer.scaling("other"), 6);
  layer.set_alpha(5);
  EXPECT_EQ(layer.scaling(), 2.5F);
  EXPECT_TRUE(layer.adapters_enabled());
  layer.disable_adapters();
  EXPECT_FALSE(layer.adapters_enabled());
  EXPECT_EQ(layer.active_adapters(), testing::Names{"default"});
}

TEST(LoraLinear, AnAssignedLayerHasParametersOfItsOwn) {
  auto source = small_layer();
  auto layer = LoraLinear<float>(random_matrix<float>(5, 3, 8), {.rank = 1}, 1);
  ASSERT_EQ(layer.parameters()[0].cols(), 3);
  const auto x = random_matrix<float>(2, 4, 1);
  const Matrix<float> y = source.infer(x);
  ASSERT_EQ(source.parameters().size(), 2U);
  layer = source;
  EXPECT_TRUE(same_bits(layer.infer(x), y));
  ASSERT_EQ(layer.parameters()[0].cols(), 4);
  layer.parameters()[0].value().setZero();
  EXPECT_TRUE(layer.lora_A().isZero(0));
  EXPECT_TRUE(same_bits(source.infer(x), y));
}

TEST(LoraLinear, StartsWithOrthogonalFactorsIfAsked) {
  auto layer = small_layer({.rank = 0});
  const auto adapter = layer.make_adapter("default", {.rank = 2, .init_lora_weights = InitLoraWeights::orthogonal}, 7);
  Matrix<float> a(2, 4), b(6, 2);
  initialize_orthogonal(7, view_of(a), view_of(b));
  EXPECT_TRUE(same_bits(adapter.A, a));
  EXPECT_TRUE(same_bits(adapter.B, b));
}

TEST(LoraLinear, WantsGradientsOfEveryActiveAdapter) {
  auto layer = small_layer();
  LoraLinear<float>::Gradients of_one = layer.make_gradients();
  layer.add_adapter("other", {.rank = 2}, 1);
  layer.set_adapters({"default", "other"});
  const auto x = random_matrix<float>(3, 4, 1);
  LoraLinear<float>::Tape tape;
  Workspace workspace;
  Matrix<float> y(3, 6);
  layer.forward(x, tape, y, workspace);
  EXPECT_EQ(message_of<ShapeError>([&] { layer.backward(x, tape, y, of_one, workspace); }),
            "LoraLinear::backward: gradients: expected 2 sets, one an active adapter, got 1");
  EXPECT_TRUE(of_one.A.isZero(0));
}

// An adapter of PiSSA remembers its start, to whose shape it is held too.
TEST(LoraLinear, RefusesAnAdapterWhoseStartDoesNotFit) {
  auto layer = small_layer({.rank = 0});
  auto adapter = layer.make_adapter("pissa", {.rank = 2, .init_lora_weights = InitLoraWeights::pissa}, 1);
  adapter.start.B.resize(6, 3);
  EXPECT_EQ(message_of<ShapeError>([&] { layer.add_adapter(adapter); }),
            "LoraLinear::add_adapter: adapter.start.B: expected 6 x 2, got 6 x 3");
  EXPECT_EQ(layer.adapter_count(), 0);
}

TEST(LoraLinear, RefusesAnInputGradientOverTheInput) {
  const auto layer = small_layer();
  auto x = random_matrix<float>(3, 4, 1);
  LoraLinear<float>::Tape tape;
  Workspace workspace;
  Matrix<float> y(3, 6);
  layer.forward(x, tape, y, workspace);
  auto gradients = layer.make_gradients();
  EXPECT_EQ(message_of<ShapeError>([&] { layer.backward(x, tape, y, gradients, x, workspace); }),
            "LoraLinear::backward: dx: expected memory apart from x, got overlapping memory");
  EXPECT_TRUE(gradients.A.isZero(0));
}

TEST(LoraLinear, ARefusedForwardLeavesTheLastPass) {
  auto layer = small_layer();
  const auto x = random_matrix<float>(3, 4, 1);
  const Matrix<float> y = layer.forward(x);
  layer.merge();
  EXPECT_THROW(layer.forward(x), StateError);
  layer.unmerge();
  EXPECT_NO_THROW(layer.backward(y));
}

TEST(LoraLinear, ValuesMayBeAnExpressionOverWhatTheyReplace) {
  auto layer = small_layer({.rank = 2, .use_dora = true});
  layer.set_magnitude(RowVector<float>::LinSpaced(6, 1, 6));
  layer.set_magnitude(layer.magnitude().reverse());
  EXPECT_TRUE(same_bits(layer.magnitude(), RowVector<float>::LinSpaced(6, 6, 1).eval()));
}

TEST(LoraLinear, ResetWithoutAnActiveAdapterReplacesTheDefaultOne) {
  auto layer = small_layer();
  layer.add_adapter("other", {.rank = 1}, 1);
  layer.set_adapters({});
  layer.reset_adapter({.rank = 3}, 5);
  EXPECT_EQ(layer.adapter_names(), (testing::Names{"default", "other"}));
  EXPECT_EQ(layer.active_adapters(), testing::Names{"default"});
  EXPECT_EQ(layer.rank(), 3);

  layer.delete_adapter("default");
  layer.set_adapters({});
  layer.reset_adapter({.rank = 1}, 5);
  EXPECT_EQ(layer.adapter_names(), (testing::Names{"other", "default"}));
  EXPECT_EQ(layer.active_adapters(), testing::Names{"default"});
}

// What evaluation merges must leave a layer that answers.
TEST(LoraLinear, EvaluationMergesNothingBesideAnAdapterWithDoraThatStaysUnmerged) {
  auto layer = small_layer({.rank = 2});
  layer.add_adapter("dora", {.rank = 2, .merge_weights = false, .use_dora = true}, 2);
  layer.set_adapters({"default", "dora"});
  const auto x = random_matrix<float>(3, 4, 1);
  const Matrix<float> y = layer.infer(x);
  layer.eval();
  EXPECT_FALSE(layer.merged());
  EXPECT_TRUE(same_bits(layer.infer(x), y));
}

TEST(LoraLinear, EvaluationMergesNoSecondAdapterWithDora) {
  auto layer = small_layer({.rank = 2, .use_dora = true});
  layer.add_adapter("other", {.rank = 2, .use_dora = true}, 2);
  layer.merge({"other"});
  layer.eval();
  EXPECT_FALSE(layer.training());
  EXPECT_EQ(layer.merged_adapters(), testing::Names{"other"});
}

TEST(LoraLinear, EvaluationMergesNothingWhileRowsChooseTheirAdapters) {
  auto layer = small_layer({.rank = 2});
  layer.add_adapter("other", {.rank = 2}, 2);
  layer.set_row_adapters({"other", "default", "__base__"});
  const auto x = random_matrix<float>(3, 4, 1);
  const Matrix<float> y = layer.infer(x);
  layer.eval();
  EXPECT_TRUE(same_bits(layer.forward(x), y));
}

// An adapter without factors writes nothing into a weight.
TEST(LoraLinear, MergesATrainedBiasOverAWeightThatCannotBeMergedInto) {
  using Weight = Quantized<formats::Q8_0>;
  const auto w = random_matrix<float>(6, 32, 1);
  LoraLinear<float, Weight> layer(Weight::quantize(view_of(w)), random_vector<float>(6, 2),
                                  {.rank = 0, .bias = BiasMode::all}, 1);
  layer.set_adapter_bias("default", random_matrix<float>(1, 6, 3));
  const auto x = random_matrix<float>(3, 32, 4);
  const Matrix<float> y = layer.infer(x);
  layer.merge();
  EXPECT_TRUE(same_bits(layer.infer(x), y));
  layer.merge_and_unload();
  EXPECT_TRUE(same_bits(layer.infer(x), y));
  layer.add_adapter("more", {.rank = 1}, 1);
  EXPECT_THROW(layer.merge(), StateError);
}

// The bias comes before the low-rank terms, as where one product serves rows of several adapters.
TEST(LoraLinear, OverATransposedWeightARowHasTheBitsOfItsAdapterAlone) {
  using Weight = TransposedWeight<PackedWeight<float>>;
  const auto w = random_matrix<float>(48, 64, 1);
  LoraLinear<float, Weight> layer(Weight(PackedWeight<float>(view_of(w))), random_vector<float>(64, 2), {.rank = 4}, 1);
  layer.set_factors(random_matrix<float>(4, 48, 3), random_matrix<float>(64, 4, 4));
  const auto x = random_matrix<float>(5, 48, 5);
  EXPECT_TRUE(
      same_bits(layer.infer(x, std::vector<int>{0, 0, -1, 0, 0}).topRows(2).eval(), layer.infer(x).topRows(2).eval()));
}

// A weight that counts its products.
class CountedWeight : public MatrixWeight<float> {
 public:
  CountedWeight(Matrix<float> matrix, long& products) : MatrixWeight(std::move(matrix)), products_(&products) {}

  void product(const MatrixView<const float>& x, const float* bias, const LowRankTerm<float>& term,
               const MatrixView<float>& y, Workspace& workspace) const {
    ++*products_;
    MatrixWeight::product(x, bias, term, y, workspace);
  }

 private:
  long* products_;
};

// One adapter with DoRA took the shared product from all rows: one request slowed every other one down. DoRA has a
// second product, of W and A, for its norms.
TEST(LoraLinear, RowsThatChooseShareProductsBesideOneThatCannot) {
  long products = 0;
  LoraLinear<float, CountedWeight> layer(CountedWeight(random_matrix<float>(6, 4, 1), products), {.rank = 0}, 1);
  for (const char* name : {"a", "b", "c"}) layer.add_adapter(name, {.rank = 2}, 1);
  layer.add_adapter("dora", {.rank = 2, .use_dora = true}, 2);
  layer.add_adapter("biased", {.rank = 2, .lora_bias = true}, 3);
  const auto products_of = [&](const std::vector<std::string>& choices) {
    products = 0;
    static_cast<void>(layer.infer(random_matrix<float>(static_cast<Index>(choices.size()), 4, 5), choices));
    return products;
  };
  EXPECT_EQ(products_of({"a", "b", "__base__", "c", "a"}), 1);
  EXPECT_EQ(products_of({"dora", "dora"}), 2);
  EXPECT_EQ(products_of({"a", "b", "c", "dora"}), 3);
  EXPECT_EQ(products_of({"a", "dora", "b", "a", "c", "__base__"}), 4);
  EXPECT_EQ(products_of({"dora", "biased", "a", "b"}), 4);
}

}  // namespace
}  // namespace lora::linear_test
