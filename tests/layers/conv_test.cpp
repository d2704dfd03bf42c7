// LoraConv against the dense formula over dimensions, geometries and options; its laws.
#include "lora/layers/conv.hpp"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "support/bits.hpp"
#include "support/conv_oracle.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::conv_answer;
using testing::ConvAnswer;
using testing::ConvCase;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using testing::within_rounding;

template <int Dim>
struct Setting {
  ConvGeometry<Dim> geometry;
  ImageExtents<Dim> extents;
  Index samples;
  Index rank;
};

struct Options {
  bool with_bias, rslora, lora_bias, dora;
  double dropout;
};

const std::vector<Options> all_options = {{true, false, false, false, 0.0}, {false, false, true, false, 0.0},
                                          {true, true, true, false, 0.3},   {true, false, false, true, 0.0},
                                          {false, false, false, true, 0.4}, {false, false, false, false, 0.5}};

// Tails of panels and tiles, strides, padding beyond the kernel, dilation, groups to the last, one tap and one pixel,
// no samples, nothing but padding, more channels than one part of the input's gradient.
template <int Dim>
std::vector<Setting<Dim>> settings();

template <>
std::vector<Setting<1>> settings<1>() {
  return {{{.in_channels = 3, .out_channels = 4, .kernel = {3}, .stride = {2}, .padding = {1}}, {11}, 2, 2},
          {{.in_channels = 2, .out_channels = 3, .kernel = {4}, .padding = {5}, .dilation = {3}}, {20}, 3, 1},
          {{.in_channels = 5, .out_channels = 7}, {1}, 9, 3},
          {{.in_channels = 1, .out_channels = 1, .kernel = {2}, .padding = {1}}, {0}, 2, 1},
          {{.in_channels = 6, .out_channels = 9, .kernel = {3}, .stride = {3}, .groups = 3}, {8}, 5, 6},
          {{.in_channels = 100, .out_channels = 17, .kernel = {5}, .padding = {2}}, {70}, 2, 9},
          {{.in_channels = 3, .out_channels = 4, .kernel = {3}}, {9}, 2, 0}};
}

template <>
std::vector<Setting<2>> settings<2>() {
  return {{{.in_channels = 3, .out_channels = 5, .kernel = {3, 3}, .padding = {1, 1}}, {8, 9}, 2, 2},
          {{.in_channels = 4, .out_channels = 6, .kernel = {3, 2}, .stride = {2, 1}, .padding = {1, 0}}, {9, 7}, 2, 4},
          {{.in_channels = 4, .out_channels = 7}, {5, 5}, 3, 2},
          {{.in_channels = 4, .out_channels = 7, .stride = {2, 3}}, {5, 5}, 3, 2},
          {{.in_channels = 6, .out_channels = 4, .kernel = {2, 3}, .dilation = {2, 3}, .groups = 2}, {7, 12}, 2, 4},
          {{.in_channels = 6, .out_channels = 12, .kernel = {3, 3}, .padding = {1, 2}, .groups = 6}, {6, 5}, 1, 6},
          {{.in_channels = 2, .out_channels = 3, .kernel = {2, 2}}, {4, 4}, 0, 2},
          {{.in_channels = 2, .out_channels = 50, .kernel = {1, 3}, .padding = {0, 4}}, {13, 17}, 1, 5}};
}

template <>
std::vector<Setting<3>> settings<3>() {
  return {
      {{.in_channels = 2,
        .out_channels = 3,
        .kernel = {2, 3, 2},
        .stride = {1, 2, 1},
        .padding = {1, 1, 0},
        .dilation = {2, 1, 3}},
       {4, 5, 6},
       2,
       2},
      {{.in_channels = 4, .out_channels = 4, .kernel = {3, 1, 2}, .padding = {1, 0, 1}, .groups = 2}, {3, 2, 5}, 3, 2},
      {{.in_channels = 3, .out_channels = 2}, {2, 3, 4}, 2, 1}};
}

template <class Scalar, int Dim>
struct Made {
  ConvCase<Scalar, Dim> c;
  LoraConv<Scalar, Dim> layer;
};

template <int Dim>
LoraConfig config_of(const Setting<Dim>& setting, const Options& options) {
  const bool adapts = setting.rank > 0;
  return {.rank = setting.rank,
          .alpha = 3,
          .dropout = options.dropout,
          .use_rslora = options.rslora,
          .use_dora = options.dora && adapts,
          .lora_bias = options.lora_bias && adapts,
          .bias = BiasMode::all};
}

template <class Scalar, int Dim>
Made<Scalar, Dim> make(const Setting<Dim>& setting, const Options& options) {
  const auto config = config_of(setting, options);
  const auto& g = setting.geometry;
  const Index out = detail::saturated_product(g.out_channels, output_extents("test", g, setting.extents));
  ConvCase<Scalar, Dim> c;
  c.geometry = g;
  c.extents = setting.extents;
  c.x = random_matrix<Scalar>(setting.samples, detail::saturated_product(g.in_channels, setting.extents), 1);
  c.w = random_matrix<Scalar>(g.out_channels, g.fan_in(), 2);
  c.a = random_matrix<Scalar>(setting.rank, g.fan_in(), 3);
  c.b = random_matrix<Scalar>(g.out_channels, setting.rank / g.groups, 4);
  c.dy = random_matrix<Scalar>(setting.samples, out, 5);
  if (options.with_bias) c.bias = random_vector<Scalar>(g.out_channels, 6);
  if (config.lora_bias) c.lora_bias = random_vector<Scalar>(g.out_channels, 7);
  if (config.use_dora) c.magnitude = random_vector<Scalar>(g.out_channels, 8, 3.0);
  c.scaling = config.scaling();
  auto layer =
      options.with_bias ? LoraConv<Scalar, Dim>(c.w, c.bias, g, config, 1) : LoraConv<Scalar, Dim>(c.w, g, config, 1);
  layer.set_factors(c.a, c.b);
  if (config.lora_bias) layer.set_lora_bias(c.lora_bias);
  if (config.use_dora) layer.set_magnitude(c.magnitude);
  return {std::move(c), std::move(layer)};
}

template <class Scalar>
Matrix<Scalar> factors_of(const DropoutMask<Scalar>& mask, Index rows, Index cols) {
  Matrix<Scalar> keep(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) keep(i, j) = mask.keeps(i, j) ? mask.scale : Scalar(0);
  return keep;
}

// The longest chains of roundings. An element of the update rounds group_rank + 2 times relative to |W0| + |s*B*A|,
// whose norm is so many times the norm n of the sum; so many times does the error of n, and of m / n, grow.
template <class Scalar, int Dim>
struct Chains {
  Chains(const ConvCase<Scalar, Dim>& c, const ConvAnswer& exact, const ConvAnswer& magnitude) {
    const Index positions = detail::saturated_product(c.x.rows(), output_extents("test", c.geometry, c.extents));
    const Index k = c.geometry.fan_in();
    const Index r = c.b.cols();
    double growth = 0;
    if (c.magnitude.size() > 0) {
      for (Index o = 0; o < c.w.rows(); ++o) {
        const auto sizes = c.w.row(o).cwiseAbs().template cast<testing::Wide>() + magnitude.delta.row(o);
        growth = std::max(growth, static_cast<double>(sizes.norm() / exact.norms(0, o)));
      }
    }
    const auto norms = static_cast<Index>(std::ceil(growth * static_cast<double>(r + 4)));
    y = k + 2 * r + 8 + norms;
    da = c.geometry.group_outputs() + positions + 10 + norms;
    db = k + positions + 10 + norms;
    dx = c.geometry.group_outputs() * c.geometry.taps() + 2 * r + 10 + norms;
    dbias = positions + 8;
    dmagnitude = k + 2 * r + positions + 10 + norms;
  }
  Index y, da, db, dx, dbias, dmagnitude;
};

template <class T>
class ConvLaws : public ::testing::Test {};

template <class ScalarType, int dimensions>
struct Kind {
  using Scalar = ScalarType;
  static constexpr int Dim = dimensions;
};

using Kinds =
    ::testing::Types<Kind<float, 1>, Kind<float, 2>, Kind<float, 3>, Kind<double, 1>, Kind<double, 2>, Kind<double, 3>>;

struct KindNames {
  template <class T>
  static std::string GetName(int /*index*/) {
    return (std::is_same_v<typename T::Scalar, float> ? "Float" : "Double") + std::to_string(T::Dim) + "d";
  }
};

TYPED_TEST_SUITE(ConvLaws, Kinds, KindNames);

TYPED_TEST(ConvLaws, TrainingStepAgreesWithTheDenseFormula) {
  using Scalar = typename TypeParam::Scalar;
  constexpr int Dim = TypeParam::Dim;
  for (const auto& setting : settings<Dim>()) {
    for (const auto& options : all_options) {
      SCOPED_TRACE(::testing::Message() << extents_text(setting.extents) << " by "
                                        << extents_text(setting.geometry.kernel) << ", groups "
                                        << setting.geometry.groups << ", dropout " << options.dropout << ", dora "
                                        << options.dora);
      auto [c, layer] = make<Scalar>(setting, options);
      ConvRecord<Scalar, Dim> record;
      record.position = {3, 11};
      Workspace workspace;
      Matrix<Scalar> y(c.dy.rows(), c.dy.cols());
      Matrix<Scalar> dx(c.x.rows(), c.x.cols());
      auto gradients = layer.make_gradients();
      layer.forward(c.x, c.extents, record, y, workspace);
      layer.backward(c.x, record, c.dy, gradients, dx, workspace);
      if (options.dropout > 0 && setting.rank > 0) {
        c.keep = factors_of(record.dropout_bits().template mask<Scalar>(options.dropout), c.x.rows(), c.x.cols());
      }
      const auto exact = conv_answer(c);
      const auto magnitude = conv_answer(c, true);
      const Chains<Scalar, Dim> chain(c, exact, magnitude);
      EXPECT_TRUE(within_rounding(y, exact.y, magnitude.y, chain.y));
      EXPECT_TRUE(within_rounding(gradients.A, exact.da, magnitude.da, chain.da));
      EXPECT_TRUE(within_rounding(gradients.B, exact.db, magnitude.db, chain.db));
      EXPECT_TRUE(within_rounding(dx, exact.dx, magnitude.dx, chain.dx));
      if (options.with_bias) {
        EXPECT_TRUE(within_rounding(gradients.bias, exact.dbias, magnitude.dbias, chain.dbias));
      }
      if (c.lora_bias.size() > 0) {
        EXPECT_TRUE(within_rounding(gradients.lora_bias, exact.dlora_bias, magnitude.dlora_bias, chain.dbias));
      }
      if (c.magnitude.size() > 0) {
        EXPECT_TRUE(within_rounding(gradients.magnitude, exact.dmagnitude, magnitude.dmagnitude, chain.dmagnitude));
      }
    }
  }
}

TYPED_TEST(ConvLaws, InferenceAgreesWithTheDenseFormulaMergedOrNotAndUnmergingRestoresEveryBit) {
  using Scalar = typename TypeParam::Scalar;
  for (const auto& setting : settings<TypeParam::Dim>()) {
    for (const auto& options : all_options) {
      SCOPED_TRACE(::testing::Message() << extents_text(setting.extents) << ", groups " << setting.geometry.groups
                                        << ", dora " << options.dora);
      auto [c, layer] = make<Scalar>(setting, options);
      const auto exact = conv_answer(c);
      const auto magnitude = conv_answer(c, true);
      const Chains<Scalar, TypeParam::Dim> chain(c, exact, magnitude);
      EXPECT_TRUE(within_rounding(layer.infer(c.x, c.extents), exact.y, magnitude.y, chain.y));
      EXPECT_TRUE(within_rounding(layer.delta_weight(), exact.delta, magnitude.delta, setting.rank + 2));
      layer.eval();
      EXPECT_TRUE(within_rounding(layer.infer(c.x, c.extents), exact.y, magnitude.y, chain.y));
      EXPECT_TRUE(same_bits(layer.base_weight(), c.w));
      EXPECT_EQ(same_bits(layer.weight(), c.w), setting.rank == 0);
      layer.train();
      EXPECT_TRUE(same_bits(layer.weight(), c.w));
      EXPECT_EQ(layer.merge_bytes(), 0U);
    }
  }
}

TYPED_TEST(ConvLaws, ResultsDoNotDependOnTheNumberOfWorkersNorASampleOnItsBatch) {
  using Scalar = typename TypeParam::Scalar;
  constexpr int Dim = TypeParam::Dim;
  for (const auto& setting : settings<Dim>()) {
    if (setting.samples == 0) continue;
    for (const auto& options : all_options) {
      SCOPED_TRACE(::testing::Message() << extents_text(setting.extents) << ", groups " << setting.geometry.groups
                                        << ", dropout " << options.dropout << ", dora " << options.dora);
      auto [c, layer] = make<Scalar>(setting, options);
      const auto run = [&, &c = c, &layer = layer](Workspace& workspace, Index first, Index count, Matrix<Scalar>& y,
                                                   Matrix<Scalar>& dx, LoraGradients<Scalar>& gradients) {
        ConvRecord<Scalar, Dim> record;
        record.position = {3, first};
        layer.forward(c.x.middleRows(first, count), c.extents, record, y, workspace);
        layer.backward(c.x.middleRows(first, count), record, c.dy.middleRows(first, count), gradients, dx, workspace);
      };
      Workspace serial;
      Matrix<Scalar> y(c.dy.rows(), c.dy.cols()), dx(c.x.rows(), c.x.cols());
      auto gradients = layer.make_gradients();
      run(serial, 0, setting.samples, y, dx, gradients);
      for (const int workers : {2, 5}) {
        testing::ThreadExecutor executor(workers);
        Workspace parallel(executor);
        Matrix<Scalar> other_y(y.rows(), y.cols()), other_dx(dx.rows(), dx.cols());
        auto other = layer.make_gradients();
        run(parallel, 0, setting.samples, other_y, other_dx, other);
        EXPECT_TRUE(same_bits(other_y, y));
        EXPECT_TRUE(same_bits(other_dx, dx));
        EXPECT_TRUE(same_bits(other.A, gradients.A));
        EXPECT_TRUE(same_bits(other.B, gradients.B));
        EXPECT_TRUE(same_bits(other.bias, gradients.bias));
        EXPECT_TRUE(same_bits(other.magnitude, gradients.magnitude));
      }
      for (Index i = 0; i < setting.samples; ++i) {
        Matrix<Scalar> one_y(1, y.cols()), one_dx(1, dx.cols());
        run(serial, i, 1, one_y, one_dx, gradients);
        EXPECT_TRUE(same_bits(one_y, Matrix<Scalar>(y.row(i))));
        EXPECT_TRUE(same_bits(one_dx, Matrix<Scalar>(dx.row(i))));
      }
    }
  }
}

TYPED_TEST(ConvLaws, InputsOfAnyStorageOrderGiveTheSameBits) {
  using Scalar = typename TypeParam::Scalar;
  using ColumnMajor = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
  for (const auto& setting : settings<TypeParam::Dim>()) {
    auto [c, layer] = make<Scalar>(setting, {true, false, false, true, 0.3});
    auto other = layer;
    const Matrix<Scalar> y = layer.forward(c.x, c.extents);
    const Matrix<Scalar> dx = layer.backward(c.dy);
    EXPECT_TRUE(same_bits(other.forward(ColumnMajor(c.x), c.extents), y));
    EXPECT_TRUE(same_bits(other.backward(ColumnMajor(c.dy)), dx));
    EXPECT_TRUE(same_bits(other.gradients().A, layer.gradients().A));
    EXPECT_TRUE(same_bits(other.gradients().B, layer.gradients().B));
    EXPECT_TRUE(same_bits(layer.infer(c.x * Scalar(1), c.extents), layer.infer(c.x, c.extents)));
  }
}

TYPED_TEST(ConvLaws, ANewLayerIsItsBaseConvolution) {
  using Scalar = typename TypeParam::Scalar;
  constexpr int Dim = TypeParam::Dim;
  for (const auto& setting : settings<Dim>()) {
    auto c = make<Scalar>(setting, {true, false, false, false, 0.0}).c;
    const LoraConv<Scalar, Dim> plain(c.w, c.bias, c.geometry, {.rank = 0}, 1);
    const LoraConv<Scalar, Dim> fresh(c.w, c.bias, c.geometry, {.rank = 2 * c.geometry.groups}, 1);
    EXPECT_TRUE(same_bits(fresh.infer(c.x, c.extents), plain.infer(c.x, c.extents)));
    const LoraConv<Scalar, Dim> dora(c.w, c.geometry, {.rank = 2 * c.geometry.groups, .use_dora = true}, 1);
    const LoraConv<Scalar, Dim> base(c.w, c.geometry, {.rank = 0}, 1);
    EXPECT_TRUE(same_bits(dora.infer(c.x, c.extents), base.infer(c.x, c.extents)));
  }
}

}  // namespace
}  // namespace lora
