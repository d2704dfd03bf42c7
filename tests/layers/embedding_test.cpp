// SPDX-License-Identifier: MIT
// Embeddings: their cases for the laws, as lookup and as output projection, and what is theirs alone.
#include "lora/layers/embedding.hpp"

#include <array>
#include <cstdint>
#include <gtest/gtest.h>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lora/weight/packed.hpp"
#include "lora/weight/quantized.hpp"
#include "lora/weight/transposed.hpp"
#include "support/bits.hpp"
#include "support/message_of.hpp"
#include "support/native_layer.hpp"

namespace lora::embedding_test {
namespace {

using testing::AnyLayer;
using testing::LayerCase;
using testing::Lies;
using testing::random_matrix;
using testing::Rows;
using testing::same_bits;
using testing::WideRows;

constexpr Index ids = 23;
constexpr Index dimensions = 18;

// The weight is the transposed table, dimensions x ids.
template <class Weight, bool projects>
class Case final : public LayerCase {
  using Scalar = typename Weight::Scalar;
  using Layer = LoraEmbedding<Scalar, Weight>;

 public:
  explicit Case(std::string of, std::optional<Index> padding_idx = std::nullopt) : padding_idx_(padding_idx) {
    name = std::move(of);
    layer_name = "LoraEmbedding";
    epsilon = std::numeric_limits<Scalar>::epsilon();
    mergeable = MergeableWeight<Weight>;
    if (mergeable) storage = storage_of<Weight>;
    w0 = testing::stored_values<Weight>(random(dimensions, ids, 1));
    for (Index j = 0; j < dimensions; ++j) adapted.push_back(j);
    by_row = !projects;
    drops = has_lora_bias = false;
    has_dx = projects;
  }

  [[nodiscard]] std::unique_ptr<AnyLayer> make(const LoraConfig& config, std::uint64_t seed) const override {
    using Use = std::conditional_t<projects, testing::AsProjection, testing::AsIds>;
    std::shared_ptr<std::vector<Scalar>> memory;
    Layer layer(testing::weight_over<Weight>(w0, Lies::by_input, false, memory), config, seed, padding_idx_);
    return std::make_unique<testing::NativeLayer<Layer, Use>>(std::move(layer), Use{}, output_width(), true, memory);
  }
  [[nodiscard]] Rows inputs(Index samples, std::uint64_t seed) const override {
    if (projects) return random(samples, dimensions, seed);
    Rows x(samples, 1);  // some ids twice, the padding among them
    for (Index i = 0; i < samples; ++i)
      x(i, 0) = static_cast<double>((i * i + 3 * i + 1 + static_cast<Index>(seed)) % ids);
    if (padding_idx_.has_value() && samples > 0) x(samples - 1, 0) = static_cast<double>(*padding_idx_);
    return x;
  }
  [[nodiscard]] Index output_width() const override { return projects ? ids : dimensions; }
  [[nodiscard]] Index longest_sum() const override { return ids + dimensions; }

  [[nodiscard]] WideRows apply(const WideRows& w, const WideRows& x) const override {
    if (projects) return x * w;
    WideRows y(x.rows(), dimensions);
    for (Index i = 0; i < x.rows(); ++i) y.row(i) = w.col(static_cast<Index>(x(i, 0))).transpose();
    return y;
  }
  [[nodiscard]] WideRows adjoint(const WideRows& w, const WideRows& dy) const override { return dy * w.transpose(); }
  [[nodiscard]] WideRows outer(const WideRows& dy, const WideRows& x) const override {
    if (projects) return x.transpose() * dy;
    WideRows dw = WideRows::Zero(dimensions, ids);
    for (Index i = 0; i < x.rows(); ++i) dw.col(static_cast<Index>(x(i, 0))) += dy.row(i).transpose();
    return dw;
  }
  [[nodiscard]] Index frozen_column() const override { return projects ? -1 : padding_idx_.value_or(-1); }

 private:
  std::optional<Index> padding_idx_;
};

}  // namespace
}  // namespace lora::embedding_test

namespace lora::testing {

std::vector<CasePointer> embedding_cases() {
  using QuantizedTable = TransposedWeight<QuantizedWeight<formats::F16>>;
  using embedding_test::Case;
  return {std::make_shared<Case<MatrixWeight<float>, false>>("EmbeddingMatrixFloat"),
          std::make_shared<Case<MatrixWeight<double>, false>>("EmbeddingMatrixPaddedDouble", 4),
          std::make_shared<Case<PackedWeight<float>, false>>("EmbeddingPackedFloat", 0),
          std::make_shared<Case<MatrixWeight<double>, true>>("ProjectionMatrixDouble"),
          std::make_shared<Case<PackedWeight<float>, true>>("ProjectionPackedPaddedFloat", 4),
          std::make_shared<Case<QuantizedTable, false>>("EmbeddingF16PaddedFloat", 4),
          std::make_shared<Case<QuantizedTable, true>>("ProjectionF16Float")};
}

}  // namespace lora::testing

namespace lora::embedding_test {
namespace {

using testing::message_of;

LoraEmbedding<float> small_layer(const LoraConfig& config = {.rank = 2, .alpha = 3},
                                 std::optional<Index> padding_idx = std::nullopt) {
  LoraEmbedding<float> layer(random_matrix<float>(9, 5, 1), config, 3, padding_idx);
  if (config.rank > 0) layer.set_factors(random_matrix<float>(2, 9, 4), random_matrix<float>(5, 2, 5));
  return layer;
}

TEST(Embedding, EveryFormOfIdsGivesTheSameBits) {
  const auto layer = small_layer();
  const std::vector<std::int64_t> list = {3, 8, 3, 0};
  const Matrix<float> y = layer.infer(list);
  EXPECT_EQ(y.rows(), 4);
  EXPECT_TRUE(same_bits(layer.infer(std::vector<std::uint8_t>{3, 8, 3, 0}), y));
  EXPECT_TRUE(same_bits(layer.infer(std::array<int, 4>{3, 8, 3, 0}), y));
  EXPECT_TRUE(same_bits(layer.infer(Eigen::Vector4i(3, 8, 3, 0)), y));
  Eigen::MatrixXi batch(2, 2);  // by columns, and read row by row
  batch << 3, 8, 3, 0;
  EXPECT_TRUE(same_bits(layer.infer(batch), y));
  EXPECT_TRUE(same_bits(layer.infer(batch + Eigen::MatrixXi::Zero(2, 2)), y));
  EXPECT_EQ(layer.infer(std::vector<int>{}).rows(), 0);
}

TEST(Embedding, StartsAsPeftDoes) {
  const LoraEmbedding<float> layer(random_matrix<float>(9, 5, 1), {.rank = 2}, 3);
  EXPECT_TRUE(layer.lora_embedding_A().isZero(0));
  EXPECT_GT(layer.lora_embedding_B().cwiseAbs().minCoeff(), 0);
  const LoraEmbedding<float> random(random_matrix<float>(9, 5, 1),
                                    {.rank = 2, .init_lora_weights = InitLoraWeights::random}, 3);
  EXPECT_GT(random.lora_embedding_A().cwiseAbs().minCoeff(), 0);
  EXPECT_TRUE(same_bits(random.lora_embedding_B(), layer.lora_embedding_B()));
}

// torch does not train the row of padding_idx; the projection has no padding.
TEST(Embedding, PaddingCountsFromEitherEndAndHasNoGradientAsAnInput) {
  auto layer = small_layer({.rank = 2, .alpha = 3}, -2);
  EXPECT_EQ(layer.padding_idx(), std::optional<Index>(7));
  layer.forward(std::vector<int>{7, 1, 7});
  layer.backward(random_matrix<float>(3, 5, 8));
  EXPECT_TRUE(layer.gradients().A.col(7).isZero(0));
  EXPECT_GT(layer.gradients().A.col(1).norm(), 0);
  layer.zero_grad();
  layer.project_forward(random_matrix<float>(3, 5, 8));
  layer.project_backward(random_matrix<float>(3, 9, 9));
  EXPECT_GT(layer.gradients().A.col(7).norm(), 0);
}

// Tied embeddings: one table, two uses, one gradient.
TEST(Embedding, LookupAndProjectionAddToTheSameGradients) {
  auto both = small_layer();
  auto lookup = both;
  auto projection = both;
  const std::vector<int> list = {3, 8, 3};
  const auto dy = random_matrix<float>(3, 5, 1);
  const auto dlogits = random_matrix<float>(3, 9, 2);
  const Matrix<float> x = both.forward(list);
  both.project_forward(x);
  const Matrix<float> dx = both.project_backward(dlogits);
  both.backward(dy);
  lookup.forward(list);
  lookup.backward(dy);
  projection.project_forward(x);
  EXPECT_TRUE(same_bits(projection.project_backward(dlogits), dx));
  const Matrix<float> sum = lookup.gradients().A + projection.gradients().A;
  EXPECT_LE((both.gradients().A - sum).norm(), 4 * std::numeric_limits<float>::epsilon() * sum.norm());
}

TEST(Embedding, ErrorsNameCallArgumentAndShapes) {
  auto layer = small_layer();
  Workspace workspace;
  LoraEmbedding<float>::Tape tape;
  auto gradients = layer.make_gradients();
  Matrix<float> y(2, 5), logits(2, 9), x(2, 5);
  const auto shape_error = [](const auto& body) { return message_of<ShapeError>(body); };
  EXPECT_EQ(shape_error([&] {
              static_cast<void>(layer.infer(std::vector<int>{1, 9}));
            }),
            "LoraEmbedding::infer: ids[1]: expected an id from 0 to 8, got 9");
  EXPECT_EQ(shape_error([&] { layer.infer(std::vector<int>{1}, y, workspace); }),
            "LoraEmbedding::infer: y: expected 1 x 5, got 2 x 5");
  layer.forward(std::vector<int>{1, 2}, tape, y, workspace);
  EXPECT_EQ(shape_error([&] { layer.backward(std::vector<int>{1}, tape, y, gradients, workspace); }),
            "LoraEmbedding::backward: ids: expected 2 ids, got 1");
  EXPECT_EQ(shape_error([&] { static_cast<void>(layer.project(Matrix<float>(2, 9))); }),
            "LoraEmbedding::project: x: expected N x 5, got 2 x 9");
  layer.project_forward(x, tape, logits, workspace);
  EXPECT_EQ(shape_error([&] { layer.project_backward(x, tape, x, gradients, workspace); }),
            "LoraEmbedding::project_backward: dy: expected 2 x 9, got 2 x 5");
  EXPECT_EQ(shape_error([&] { LoraEmbedding<float>(Matrix<float>(0, 5), LoraConfig{}, 1); }),
            "LoraEmbedding: weight: expected at least 1 x 1, got 5 x 0");
  EXPECT_EQ(message_of<ConfigError>([&] { small_layer({}, 9); }),
            "LoraEmbedding: padding_idx: expected an id below 9, or -1 to -9, got 9");
  EXPECT_EQ(message_of<ConfigError>([&] { small_layer({.lora_bias = true}); }),
            "LoraEmbedding::add_adapter: lora_bias: expected false for an embedding, got true");
  EXPECT_EQ(message_of<StateError>([&] { layer.project_backward(logits); }),
            "LoraEmbedding::project_backward: layer: expected a project_forward(x) in training mode before, got none");
}

// Projections of a table of one dimension have as many inputs as an id is numbers.
TEST(Embedding, ATapeOfALookupIsNoneOfAProjectionAndTheReverse) {
  for (const Index width : {5, 1}) {
    const LoraEmbedding<float> layer(random_matrix<float>(9, width, 1), {.rank = 2}, 1);
    Workspace workspace;
    LoraEmbedding<float>::Tape lookup, projection;
    auto gradients = layer.make_gradients();
    Matrix<float> y(2, width), logits(2, 9);
    const Matrix<float> x = Matrix<float>::Ones(2, width);
    const std::vector<int> list = {1, 2};
    layer.forward(list, lookup, y, workspace);
    layer.project_forward(x, projection, logits, workspace);
    EXPECT_THROW(layer.backward(list, projection, y, gradients, workspace), StateError) << width;
    EXPECT_THROW(layer.project_backward(x, lookup, logits, gradients, workspace), StateError) << width;
  }
}

TEST(Embedding, ARefusedProjectionLeavesTheLastPass) {
  auto layer = small_layer();
  Matrix<float> x(2, 5);
  x.setOnes();
  const Matrix<float> logits = layer.project_forward(x);
  layer.merge();
  EXPECT_THROW(layer.project_forward(x), StateError);
  layer.unmerge();
  EXPECT_NO_THROW(layer.project_backward(logits));
}

TEST(Embedding, RefusesAnInputGradientOverTheInput) {
  const auto layer = small_layer();
  Workspace workspace;
  LoraEmbedding<float>::Tape tape;
  auto gradients = layer.make_gradients();
  Matrix<float> logits(2, 9), x(2, 5);
  x.setOnes();
  layer.project_forward(x, tape, logits, workspace);
  EXPECT_EQ(message_of<ShapeError>([&] { layer.project_backward(x, tape, logits, gradients, x, workspace); }),
            "LoraEmbedding::project_backward: dx: expected memory apart from x, got overlapping memory");
}

TEST(Embedding, ConcurrentLookupsAndProjectionsShareOneTable) {
  const auto layer = small_layer();
  const auto x = random_matrix<float>(4, 5, 9);
  const std::vector<int> list = {3, 8, 3, 0};
  const Matrix<float> y = layer.infer(list);
  const Matrix<float> logits = layer.project(x);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) {
        EXPECT_TRUE(same_bits(layer.infer(list), y));
        EXPECT_TRUE(same_bits(layer.project(x), logits));
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace lora::embedding_test
