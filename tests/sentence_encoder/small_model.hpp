// SPDX-License-Identifier: MIT
// A model as small as the reader takes it, in files as the npm package has them.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "examples/temporary_folder.hpp"
#include "lora/core/types.hpp"

namespace examples::sentence_encoder::testing {

using lora::Index;

/// Widths 4 and 6, hidden 5, 2 heads, output 3. Number i of all is i.
class SmallModel {
 public:
  explicit SmallModel(Index vocabulary = 7) {
    const std::string encode = "module_apply_default/Encoder_en/KonaTransformer/Encode/";
    const std::string stack = encode + "TransformerStack/";
    add("module/Embeddings_en", {vocabulary, 4});
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

  /// With numbers in [-0.5, 0.5], which leave tanh and softmax something to learn.
  [[nodiscard]] static SmallModel trainable(Index vocabulary) {
    SmallModel model(vocabulary);
    for (std::size_t i = 0; i < model.values.size(); ++i) {
      if (i != model.heads_at_) model.values[i] = 0.5F * std::sin(static_cast<float>(i));
    }
    return model;
  }

  void write(const examples::testing::TemporaryFolder& folder) const {
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
    heads_at_ = values.size();
    values.push_back(std::bit_cast<float>(heads));
  }

  std::size_t heads_at_ = 0;
};

}  // namespace examples::sentence_encoder::testing
