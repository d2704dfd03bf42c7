// SPDX-License-Identifier: MIT
// Convolutions: their cases for the laws, and what is theirs alone.
#include "lora/layers/conv.hpp"

#include <gtest/gtest.h>
#include <string>
#include <thread>
#include <unsupported/Eigen/CXX11/Tensor>
#include <vector>

#include "lora/layers/tensor.hpp"
#include "lora/weight/dense.hpp"
#include "lora/weight/packed.hpp"
#include "lora/weight/quantized.hpp"
#include "support/bits.hpp"
#include "support/message_of.hpp"
#include "support/native_layer.hpp"

namespace lora::conv_test {
namespace {

using testing::AnyLayer;
using testing::LayerCase;
using testing::Lies;
using testing::random_matrix;
using testing::random_vector;
using testing::Rows;
using testing::same_bits;
using testing::Wide;
using testing::WideRows;

// Calls body(output channel, output position, weight column, input feature) for every product of a convolution.
template <int Dim, class Body>
void for_each_product(const ConvGeometry<Dim>& g, const ImageExtents<Dim>& extents, const Body& body) {
  const auto output = output_extents("oracle", g, extents);
  const auto size = [](const ImageExtents<Dim>& e) { return detail::saturated_product(1, e); };
  const auto digits = [](Index index, const ImageExtents<Dim>& e) {
    ImageExtents<Dim> result{};
    for (std::size_t d = e.size(); d-- > 0; index /= e[d]) result[d] = index % e[d];
    return result;
  };
  for (Index o = 0; o < g.out_channels; ++o) {
    for (Index q = 0; q < size(output); ++q) {
      for (Index column = 0; column < g.fan_in(); ++column) {
        const auto at = digits(q, output);
        const auto tap = digits(column % g.taps(), g.kernel);
        Index element = o / g.group_outputs() * g.group_inputs() + column / g.taps();
        bool inside = true;
        for (std::size_t d = 0; d < at.size(); ++d) {
          const Index i = at[d] * g.stride[d] + tap[d] * g.dilation[d] - g.padding[d];
          inside = inside && i >= 0 && i < extents[d];
          element = element * extents[d] + i;
        }
        if (inside) body(o, q, column, element);
      }
    }
  }
}

template <class Weight, int Dim>
class Case final : public LayerCase {
  using Scalar = typename Weight::Scalar;
  using Layer = LoraConv<Scalar, Dim, Weight>;

 public:
  Case(std::string of, const ConvGeometry<Dim>& geometry, const ImageExtents<Dim>& extents, bool with_bias = true)
      : geometry_(geometry), extents_(extents) {
    name = std::move(of);
    layer_name = "LoraConv";
    epsilon = std::numeric_limits<Scalar>::epsilon();
    rank = 2 * geometry.groups;
    positions = detail::saturated_product(1, output_extents("oracle", geometry, extents));
    mergeable = MergeableWeight<Weight>;
    if (mergeable) storage = storage_of<Weight>;
    w0 = testing::stored_values<Weight>(random(geometry.out_channels, geometry.fan_in(), 1));
    if (with_bias) bias0 = random(1, geometry.out_channels, 2);
    for (Index j = 0; j < geometry.out_channels; ++j) adapted.push_back(j);
    for_each_product(geometry, extents, [&](Index o, Index q, Index k, Index element) {
      products_.push_back({o, o * positions + q, k, element});
    });
  }

  [[nodiscard]] std::unique_ptr<AnyLayer> make(const LoraConfig& config, std::uint64_t seed) const override {
    std::shared_ptr<std::vector<Scalar>> memory;
    auto weight = testing::weight_over<Weight>(w0, Lies::by_output, false, memory);
    const auto wrap = [&](Layer&& layer) {
      return std::make_unique<testing::NativeLayer<Layer, testing::AsImages<Dim>>>(
          std::move(layer), testing::AsImages<Dim>(extents_), output_width(), false, memory);
    };
    if (bias0.size() == 0) return wrap(Layer(std::move(weight), geometry_, config, seed));
    return wrap(Layer(std::move(weight), RowVector<Scalar>(bias0.cast<Scalar>()), geometry_, config, seed));
  }
  [[nodiscard]] Rows inputs(Index samples, std::uint64_t seed) const override {
    return random(samples, detail::saturated_product(geometry_.in_channels, extents_), seed);
  }
  [[nodiscard]] Index output_width() const override { return geometry_.out_channels * positions; }
  [[nodiscard]] Index longest_sum() const override {
    return geometry_.fan_in() + geometry_.out_channels * geometry_.taps();
  }

  [[nodiscard]] WideRows apply(const WideRows& w, const WideRows& x) const override {
    WideRows y = WideRows::Zero(x.rows(), output_width());
    for (const Product& p : products_)
      for (Index i = 0; i < x.rows(); ++i) y(i, p.at) += w(p.o, p.k) * x(i, p.element);
    return y;
  }
  [[nodiscard]] WideRows adjoint(const WideRows& w, const WideRows& dy) const override {
    WideRows dx = WideRows::Zero(dy.rows(), detail::saturated_product(geometry_.in_channels, extents_));
    for (const Product& p : products_)
      for (Index i = 0; i < dy.rows(); ++i) dx(i, p.element) += w(p.o, p.k) * dy(i, p.at);
    return dx;
  }
  [[nodiscard]] WideRows outer(const WideRows& dy, const WideRows& x) const override {
    WideRows dw = WideRows::Zero(w0.rows(), w0.cols());
    for (const Product& p : products_)
      for (Index i = 0; i < x.rows(); ++i) dw(p.o, p.k) += dy(i, p.at) * x(i, p.element);
    return dw;
  }
  // Outputs of a group see the rows of A of their group.
  [[nodiscard]] WideRows spread(const WideRows& b, Index a_rows) const override {
    WideRows whole = WideRows::Zero(b.rows(), a_rows);
    for (Index o = 0; o < b.rows(); ++o) whole.block(o, first_of(o, b.cols()), 1, b.cols()) = b.row(o);
    return whole;
  }
  [[nodiscard]] WideRows gathered(const WideRows& whole, Index b_cols) const override {
    WideRows b(whole.rows(), b_cols);
    for (Index o = 0; o < b.rows(); ++o) b.row(o) = whole.block(o, first_of(o, b_cols), 1, b_cols);
    return b;
  }

 private:
  [[nodiscard]] Index first_of(Index output, Index group_rank) const {
    return output / geometry_.group_outputs() * group_rank;
  }
  struct Product {
    Index o, at, k, element;  // output channel, column of y, column of the weight, column of x
  };
  ConvGeometry<Dim> geometry_;
  ImageExtents<Dim> extents_;
  std::vector<Product> products_;
};

}  // namespace
}  // namespace lora::conv_test

namespace lora::testing {

std::vector<CasePointer> conv_cases() {
  using conv_test::Case;
  const ConvGeometry<1> line{
      .in_channels = 3, .out_channels = 5, .kernel = {3}, .stride = {2}, .padding = {2}, .dilation = {2}};
  const ConvGeometry<2> grouped{.in_channels = 4,
                                .out_channels = 6,
                                .kernel = {3, 2},
                                .stride = {1, 2},
                                .padding = {1, 0},
                                .dilation = {1, 2},
                                .groups = 2};
  const ConvGeometry<2> plain{.in_channels = 3, .out_channels = 18, .kernel = {2, 3}, .padding = {0, 1}};
  const ConvGeometry<3> volume{.in_channels = 4,
                               .out_channels = 4,
                               .kernel = {2, 1, 3},
                               .stride = {1, 2, 1},
                               .padding = {0, 1, 2},
                               .dilation = {2, 1, 1},
                               .groups = 2};
  return {std::make_shared<Case<MatrixWeight<float>, 3>>("Conv3dMatrixGroupsFloat", volume, ImageExtents<3>{3, 2, 3}),
          std::make_shared<Case<MatrixWeight<float>, 1>>("Conv1dMatrixFloat", line, ImageExtents<1>{11}),
          std::make_shared<Case<DenseWeight<double>, 1>>("Conv1dDenseNoBiasDouble", line, ImageExtents<1>{11}, false),
          std::make_shared<Case<MatrixWeight<double>, 2>>("Conv2dMatrixGroupsDouble", grouped, ImageExtents<2>{5, 7}),
          std::make_shared<Case<DenseWeight<float>, 2>>("Conv2dDenseFloat", plain, ImageExtents<2>{4, 5}),
          std::make_shared<Case<DenseWeight<float>, 2>>("Conv2dDenseGroupsFloat", grouped, ImageExtents<2>{5, 7}),
          std::make_shared<Case<QuantizedWeight<formats::BF16>, 2>>("Conv2dBf16GroupsFloat", grouped,
                                                                    ImageExtents<2>{5, 7})};
}

}  // namespace lora::testing

namespace lora::conv_test {
namespace {

using testing::message_of;

constexpr ConvGeometry<2> geometry{.in_channels = 2, .out_channels = 3, .kernel = {3, 3}, .padding = {1, 0}};
using Layer = LoraConv2d<float>;
using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;

Layer small_layer(const LoraConfig& config = {.rank = 2, .alpha = 3}) {
  Layer layer(random_matrix<float>(3, 18, 1), random_vector<float>(3, 2), geometry, config, 3);
  if (config.rank > 0) layer.set_factors(random_matrix<float>(2, 18, 4), random_matrix<float>(3, 2, 5));
  return layer;
}

TEST(Conv, MatricesAndTensorsOfImagesGiveTheSameBits) {
  auto layer = small_layer({.rank = 2, .alpha = 3, .dropout = 0.3});
  auto other = layer;
  const auto x = random_matrix<float>(3, 2 * 4 * 5, 9);
  const Eigen::TensorMap<const Tensor> images(x.data(), 3, 2, 4, 5);
  const Matrix<float> y = layer.infer(x, {4, 5});
  const auto rows_of = [](const Tensor& t) {
    return Matrix<float>(Eigen::Map<const Matrix<float>>(t.data(), t.dimension(0), t.size() / t.dimension(0)));
  };
  EXPECT_EQ(y.cols(), 3 * 4 * 3);
  const Tensor answer = layer.infer(images);
  EXPECT_EQ(answer.dimension(1), 3);
  EXPECT_EQ(answer.dimension(3), 3);
  EXPECT_TRUE(same_bits(rows_of(answer), y));
  EXPECT_TRUE(same_bits(layer.infer(testing::ColumnMajor<float>(x), {4, 5}), y));
  EXPECT_TRUE(same_bits(layer.infer(x.middleRows(1, 1), {4, 5}), y.row(1)));
  EXPECT_TRUE(
      same_bits(rows_of(layer.infer(images, testing::Names{"default", "__base__", "default"})).row(0), y.row(0)));

  const Matrix<float> trained = layer.forward(x, {4, 5});
  const auto dy = random_matrix<float>(3, 36, 8);
  const Matrix<float> dx = layer.backward(dy);
  EXPECT_TRUE(same_bits(rows_of(other.forward(images)), trained));
  EXPECT_TRUE(same_bits(rows_of(other.backward(Eigen::TensorMap<const Tensor>(dy.data(), 3, 3, 4, 3))), dx));
  EXPECT_TRUE(same_bits(other.gradients().B, layer.gradients().B));
}

TEST(Conv, AKernelOfOneIsALinearLayerAtEveryPosition) {
  const auto w = random_matrix<float>(4, 3, 1);
  LoraConv1d<float> conv(w, {.in_channels = 3, .out_channels = 4}, {.rank = 2, .alpha = 3}, 1);
  const auto a = random_matrix<float>(2, 3, 4);
  const auto b = random_matrix<float>(4, 2, 5);
  conv.set_factors(a, b);
  const auto x = random_matrix<float>(1, 3 * 6, 2);
  const Matrix<float> y = conv.infer(x, {6});
  const Matrix<double> whole = (w + 1.5F * b * a).cast<double>();
  const Eigen::Map<const Matrix<float>> pixels(x.data(), 3, 6);
  const Matrix<double> expected = whole * pixels.cast<double>();
  const Eigen::Map<const Matrix<float>> got(y.data(), 4, 6);
  EXPECT_LE((got.cast<double>() - expected).norm(),
            8 * std::numeric_limits<float>::epsilon() * whole.norm() * x.norm());
}

TEST(Conv, ErrorsNameCallArgumentAndShapes) {
  auto layer = small_layer();
  const auto shape_error = [](const auto& body) { return message_of<ShapeError>(body); };
  EXPECT_EQ(shape_error([&] {
              static_cast<void>(layer.infer(Matrix<float>(3, 39), {4, 5}));
            }),
            "LoraConv::infer: x: expected N x 40, got 3 x 39");
  EXPECT_EQ(shape_error([&] {
              static_cast<void>(layer.infer(Matrix<float>(3, 8), {4, 1}));
            }),
            "LoraConv::infer: extents: expected at least 3 x 3, which the kernel spans, got 4 x 1, padded to 6 x 1");
  Tensor wrong(3, 1, 4, 5);
  EXPECT_EQ(shape_error([&] { static_cast<void>(layer.infer(wrong)); }),
            "LoraConv::infer: x: expected 3 x 2 x 4 x 5, got 3 x 1 x 4 x 5");
  Tensor x(3, 2, 4, 5), y(3, 3, 4, 4);
  x.setZero();
  Workspace workspace;
  EXPECT_EQ(shape_error([&] { layer.infer(x, y, workspace); }),
            "LoraConv::infer: y: expected 3 x 3 x 4 x 3, got 3 x 3 x 4 x 4");
  layer.forward(x);
  EXPECT_EQ(shape_error([&] { layer.backward(y); }),
            "LoraConv::backward: dy: expected 3 x 3 x 4 x 3, got 3 x 3 x 4 x 4");
  EXPECT_EQ(shape_error([&] { Layer(Matrix<float>(3, 17), geometry, LoraConfig{}, 1); }),
            "LoraConv: weight: expected 3 x 18, got 3 x 17");
  EXPECT_EQ(shape_error([&] { Layer(Matrix<float>(3, 18), RowVector<float>(4), geometry, LoraConfig{}, 1); }),
            "LoraConv: bias: expected 3 elements, got 4");
  ConvGeometry<2> grouped = geometry;
  grouped.in_channels = 6;
  grouped.groups = 3;
  EXPECT_EQ(message_of<ConfigError>([&] { Layer(random_matrix<float>(3, 18, 1), grouped, {.rank = 4}, 1); }),
            "LoraConv::add_adapter: rank: expected a multiple of 3 groups, got 4");
  EXPECT_EQ(message_of<ConfigError>([&] {
              Layer(random_matrix<float>(3, 18, 1), geometry, {.init_lora_weights = InitLoraWeights::pissa}, 1);
            }),
            "LoraConv::add_adapter: init_lora_weights: expected kaiming_uniform, gaussian or random for a convolution, "
            "got another");
  EXPECT_EQ(message_of<ConfigError>([&] { small_layer({.fan_in_fan_out = true}); }),
            "LoraConv::add_adapter: fan_in_fan_out: expected false for a convolution, got true");
}

TEST(Conv, ATapeOfOtherExtentsIsRefused) {
  const auto layer = small_layer();
  Workspace workspace;
  Layer::Tape tape;
  auto gradients = layer.make_gradients();
  Matrix<float> x = random_matrix<float>(3, 40, 1), y(3, 36);
  layer.forward(x, {4, 5}, tape, y, workspace);
  EXPECT_NO_THROW(layer.backward(x, tape, y, gradients, workspace));
  const Matrix<float> larger = random_matrix<float>(3, 48, 1);
  EXPECT_THROW(layer.backward(larger, tape, y, gradients, workspace), ShapeError);
  const LoraConv1d<float> line(random_matrix<float>(3, 18, 1), {.in_channels = 2, .out_channels = 3, .kernel = {9}},
                               {.rank = 2}, 3);
  LoraConv1d<float>::Gradients line_gradients = line.make_gradients();
  EXPECT_THROW(line.backward(x, tape, y, line_gradients, workspace), Error);
}

TEST(Conv, ConcurrentInferenceOverImages) {
  const auto layer = small_layer();
  const auto x = random_matrix<float>(3, 40, 9);
  const Matrix<float> y = layer.infer(x, {4, 5});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (Index i = 0; i < 12; ++i) EXPECT_TRUE(same_bits(layer.infer(x.middleRows(i % 3, 1), {4, 5}), y.row(i % 3)));
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace lora::conv_test
