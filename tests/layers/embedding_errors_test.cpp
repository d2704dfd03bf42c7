// What LoraEmbedding refuses, what it says, and that nothing changed.
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "lora/layers/embedding.hpp"
#include "support/bits.hpp"
#include "support/embedding_case.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

template <class S>
using Case = testing::EmbeddingCase<S>;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;

template <class ErrorType, class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no error";
}

TEST(LoraEmbeddingErrors, SayOperationArgumentExpectedAndGot) {
  const Case<float> c({4, 10, 6, 2});
  auto layer = c.layer();
  const std::vector<int> wrong = {0, 3, 10};
  EXPECT_EQ(message_of<ShapeError>([&] { (void)layer.infer(wrong); }),
            "LoraEmbedding::infer: ids[2]: expected an id from 0 to 9, got 10");
  EXPECT_EQ(message_of<ShapeError>([&] { (void)layer.forward(std::vector<int>{-1}); }),
            "LoraEmbedding::forward: ids[0]: expected an id from 0 to 9, got -1");
  Matrix<float> y(3, 6);
  Workspace workspace;
  EXPECT_EQ(message_of<ShapeError>([&] { layer.infer(c.ids, y, workspace); }),
            "LoraEmbedding::infer: y: expected 4 x 6, got 3 x 6");
  EXPECT_EQ(message_of<StateError>([&] { c.layer().backward(c.dy); }),
            "LoraEmbedding::backward: layer: expected a forward(ids) in training mode before, got none");
  EXPECT_EQ(message_of<StateError>([&] { (void)c.layer().project_backward(c.dlogits); }),
            "LoraEmbedding::project_backward: layer: expected a project_forward(x) in training mode before, got none");
  EXPECT_EQ(message_of<ShapeError>([&] { (void)layer.project(random_matrix<float>(4, 10, 1)); }),
            "LoraEmbedding::project: x: expected N x 6, got 4 x 10");
  EXPECT_EQ(message_of<ShapeError>([&] { layer.set_factors(c.b, c.a); }),
            "LoraEmbedding::set_factors: A: expected 2 x 10, got 6 x 2");
  EXPECT_EQ(message_of<ShapeError>([&] { layer.set_magnitude(random_vector<float>(6, 1)); }),
            "LoraEmbedding::set_magnitude: magnitude: expected 1 x 0, got 1 x 6");
  EXPECT_EQ(message_of<ShapeError>([&] { LoraEmbedding<float>(Matrix<float>(0, 6), {}, 1); }),
            "LoraEmbedding: table: expected at least 1 x 1, got 0 x 6");
  EXPECT_EQ(message_of<ConfigError>([&] { LoraEmbedding<float>(c.table, {}, 1, 10); }),
            "LoraEmbedding: padding_idx: expected an id below 10, or -1 to -10, got 10");
  EXPECT_EQ(message_of<ConfigError>([&] { LoraEmbedding<float>(c.table, {.lora_bias = true}, 1); }),
            "LoraEmbedding: lora_bias: expected false for an embedding, got true");
  EXPECT_EQ(message_of<ConfigError>([&] { LoraEmbedding<float>(c.table, {.rank = -1}, 1); }),
            "LoraEmbedding: rank: expected 0 or more, got -1");
}

TEST(LoraEmbeddingErrors, AnIdOutOfRangeIsFoundBeforeAnythingIsWritten) {
  const Case<double> c({4, 10, 6, 2});
  const auto layer = c.layer();
  const std::vector<std::int64_t> wrong = {1, 2, 3, 10};
  const Matrix<double> untouched = Matrix<double>::Constant(4, 6, 7);
  Matrix<double> y = untouched;
  Workspace workspace;
  LoraRecord<double> record;
  EXPECT_THROW(layer.infer(wrong, y, workspace), ShapeError);
  EXPECT_THROW(layer.forward(wrong, record, y, workspace), ShapeError);
  EXPECT_TRUE(same_bits(y, untouched));
  EXPECT_EQ(record.rows(), -1);
  auto gradients = layer.make_gradients();
  layer.forward(c.ids, record, y, workspace);
  EXPECT_THROW(layer.backward(wrong, record, c.dy, gradients, workspace), ShapeError);
  EXPECT_THROW(layer.backward(std::vector<int>{1, 2, 3}, record, c.dy, gradients, workspace), ShapeError);
  EXPECT_THROW(layer.backward(c.ids, record, c.dy.topRows(3), gradients, workspace), ShapeError);
  EXPECT_EQ(gradients.A.norm() + gradients.B.norm(), 0.0);
  auto merged = c.layer();
  merged.eval();
  y = untouched;
  EXPECT_THROW(merged.infer(wrong, y, workspace), ShapeError);
  EXPECT_TRUE(same_bits(y, untouched));
}

TEST(LoraEmbeddingErrors, WhileMergedTrainingAndChangesAreRefused) {
  const Case<float> c({4, 10, 6, 2});
  auto layer = c.layer();
  (void)layer.forward(c.ids);
  (void)layer.project_forward(c.x);
  layer.merge();
  EXPECT_THROW((void)layer.forward(c.ids), StateError);
  EXPECT_THROW(layer.backward(c.dy), StateError);
  EXPECT_THROW((void)layer.project_forward(c.x), StateError);
  EXPECT_THROW((void)layer.project_backward(c.dlogits), StateError);
  EXPECT_THROW(layer.set_alpha(2), StateError);
  EXPECT_THROW(layer.set_factors(c.a, c.b), StateError);
  EXPECT_THROW(layer.reset_adapter({}, 1), StateError);
  EXPECT_TRUE(same_bits(layer.unmerge().weight(), c.table));
}

TEST(LoraEmbeddingErrors, AnUpdateThatIsNotFiniteIsNotMerged) {
  Case<float> c({4, 10, 6, 2});
  c.a(1, 9) = std::numeric_limits<float>::infinity();
  for (const bool dora : {false, true}) {
    c.config.use_dora = dora;
    auto layer = c.layer();
    EXPECT_THROW(layer.eval(), StateError);
    EXPECT_TRUE(layer.training());
    EXPECT_TRUE(same_bits(layer.weight(), c.table));
  }
}

TEST(LoraEmbeddingErrors, OverlappingMemoryIsRefused) {
  const auto table = random_matrix<float>(6, 6, 1);
  const LoraEmbedding<float> layer(table, {.rank = 2}, 1);
  Matrix<float> x = random_matrix<float>(4, 6, 2), y(4, 6);
  Workspace workspace;
  EXPECT_THROW(layer.project(x, x, workspace), ShapeError);
  ProjectionRecord<float> record;
  layer.project_forward(x, record, y, workspace);
  auto gradients = layer.make_gradients();
  EXPECT_THROW(layer.project_backward(x, record, y, gradients, y, workspace), ShapeError);
  EXPECT_EQ(gradients.A.norm() + gradients.B.norm(), 0.0F);
}

}  // namespace
}  // namespace lora
