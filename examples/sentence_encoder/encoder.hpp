// SPDX-License-Identifier: MIT
// The Universal Sentence Encoder Lite: from token ids to embeddings of unit length, with a hand-written backward pass.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/workspace.hpp"
#include "lora/layers/embedding_ids.hpp"
#include "lora/layers/operation.hpp"
#include "lora/model/lora_model.hpp"
#include "sentence_encoder/encoder_weights.hpp"
#include "sentence_encoder/linear_kinds.hpp"
#include "sentence_encoder/packed_texts.hpp"
#include "sentence_encoder/transformer_layer.hpp"

namespace examples::sentence_encoder {

/// What one pass through an encoder keeps: activations, the layers' tapes, gradients and scratch. One per concurrent
/// caller; it grows with the largest batch.
template <class Layers>
struct EncoderPass {
  using Scalar = typename Layers::Scalar;

  EncoderPass() = default;
  /// `executor` must outlive this pass.
  explicit EncoderPass(lora::Executor& executor) : workspace(executor) {}

  PackedTexts texts;           ///< the batch of the last forward pass
  lora::Matrix<Scalar> input;  ///< tokens x embedding width
  std::vector<LayerPass<Layers>> layers;
  lora::Matrix<Scalar> pooled;            ///< texts x width: the mean over a text's tokens
  lora::Matrix<Scalar> projected;         ///< texts x output, after tanh
  lora::Matrix<Scalar> embeddings;        ///< texts x output, rows of length 1
  lora::RowVector<Scalar> inverse_norms;  ///< texts
  typename Layers::Linear::Tape projection_tape;
  lora::Matrix<Scalar> projected_gradient;  ///< texts x output
  lora::Matrix<Scalar> pooled_gradient;     ///< texts x width
  lora::Matrix<Scalar> token_gradient;      ///< tokens x width
  lora::Workspace workspace;
};

/// Two layers of attention and feed-forward over token embeddings, the mean over tokens, tanh of a projection, and
/// division by the length. `Layers` is AdaptedLayers<float> or TrainedLayers<float> (or of double). The layers are
/// members: the encoder must not move once they are registered or parameters() given out.
///
///   SentenceEncoder<AdaptedLayers<float>> encoder(read_encoder_weights(folder));
///   lora::LoraModel<float> model;
///   encoder.add_to(model);                                   // then model.add(...) for a head of one's own
///   model.inject({.lora = {.rank = 8, ..., .fan_in_fan_out = true}, .target_modules = ...}, seed);
///   EncoderPass<AdaptedLayers<float>> pass(executor);
///   const auto& embeddings = encoder.forward(pack(ids), {.step = step}, pass);
///   model.zero_grad();
///   encoder.backward(gradient_by_embeddings, pass);          // into the layers' gradients()
///   optimizer.step(model);
///
/// A text without tokens has the embedding of a zero mean, as in the package's batches; alone, or last in a batch, the
/// package refuses it or leaves it out.
///
/// Names: "transformer.layer_0.attention.qkv", "....attention.output", "....residual" (first layer only),
/// "....ffn.hidden", "....ffn.output", the same of layer_1, and "projection".
///
/// Const functions are reentrant, with a pass for each caller.
template <class LayersType>
class SentenceEncoder {
 public:
  using Layers = LayersType;
  using Scalar = typename Layers::Scalar;
  using Pass = EncoderPass<Layers>;

  /// `layers` says what the linear layers are made of. @throws lora::ShapeError, also where a format's blocks do not
  /// fit; lora::ConfigError
  explicit SentenceEncoder(EncoderWeights<Scalar> weights, const Layers& layers = {})
      : embedding_(std::move(weights.embedding)),
        frequencies_(std::move(weights.frequencies)),
        projection_(layers.make_linear(weights.projection)) {
    lora::check_shape("SentenceEncoder", "frequencies", frequencies_, 1, embedding_.cols() / 2);
    for (LayerWeights<Scalar>& layer : weights.layers) layers_.emplace_back(std::move(layer), weights.heads, layers);
  }

  /// Numbers of an embedding.
  [[nodiscard]] Index embedding_size() const noexcept { return projection_.out_features(); }
  [[nodiscard]] Index vocabulary_size() const noexcept { return embedding_.rows(); }

  /// Embeddings without dropout, texts x embedding_size(), which stay in the pass. Merged or not.
  /// @throws lora::ShapeError for an id beyond the vocabulary
  const lora::Matrix<Scalar>& infer(const PackedTexts& texts, Pass& pass) const {
    begin({"SentenceEncoder", "infer"}, texts, pass);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      layers_[l].infer(pass.texts, input_of(pass, l), pass.layers[l], pass.workspace);
    }
    pool(pass);
    projection_.infer(pass.pooled, pass.projected, pass.workspace);
    return normalise(pass);
  }

  /// The same for any number of texts, in batches. Allocates.
  [[nodiscard]] lora::Matrix<Scalar> embed(std::span<const TokenIds> texts, Pass& pass) const {
    constexpr Index tokens_at_once = 1024;
    lora::Matrix<Scalar> embeddings(static_cast<Index>(texts.size()), embedding_size());
    PackedTexts batch;
    Index done = 0;
    const auto flush = [&] {
      embeddings.middleRows(done, batch.texts()) = infer(batch, pass);
      done += batch.texts();
      batch.clear();
    };
    for (const TokenIds& text : texts) {
      batch.add(text);
      if (batch.tokens() >= tokens_at_once) flush();
    }
    if (batch.texts() > 0) flush();
    return embeddings;
  }
  [[nodiscard]] lora::Matrix<Scalar> embed(std::span<const TokenIds> texts) const {
    Pass pass;
    return embed(texts, pass);
  }

  /// The forward pass of training, with the adapters' dropout at `position`.
  /// @throws lora::ShapeError; lora::StateError while merged
  const lora::Matrix<Scalar>& forward(const PackedTexts& texts, const BatchPosition& position, Pass& pass) const {
    begin({"SentenceEncoder", "forward"}, texts, pass);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      layers_[l].forward(pass.texts, input_of(pass, l), position, pass.layers[l], pass.workspace);
    }
    pool(pass);
    Layer::set_position(pass.projection_tape, position.step, position.first_text);
    projection_.forward(pass.pooled, pass.projection_tape, pass.projected, pass.workspace);
    return normalise(pass);
  }

  /// From the loss's gradient by the embeddings of the last forward pass (texts x embedding_size()) to the gradients of
  /// all that trains. Call zero_grad() first: adapters add, fully trained layers write.
  void backward(const lora::Matrix<Scalar>& embeddings_gradient, Pass& pass) {
    lora::check_shape("SentenceEncoder::backward", "embeddings_gradient", embeddings_gradient, pass.embeddings.rows(),
                      embedding_size());
    normalise_backward(embeddings_gradient, pass);
    pass.pooled_gradient.resize(pass.pooled.rows(), pass.pooled.cols());
    projection_.backward(pass.pooled, pass.projection_tape, pass.projected_gradient, projection_.gradients(),
                         pass.pooled_gradient, pass.workspace);
    pool_backward(pass);
    for (std::size_t l = layers_.size(); l-- > 0;) {
      layers_[l].backward(pass.texts, input_of(pass, l), pass.token_gradient, l == 0, pass.layers[l], pass.workspace);
    }
  }

  /// Memory of the linear layers' frozen weights.
  [[nodiscard]] std::size_t frozen_bytes() requires(!Layers::trains_norms) {
    std::size_t bytes = 0;
    for_each_linear([&](const std::string& /*name*/, auto& layer) { bytes += layer.frozen_weight().bytes(); });
    return bytes;
  }

  void zero_grad() {
    for_each_linear([](const std::string& /*name*/, auto& layer) { layer.zero_grad(); });
  }

  /// Registers every linear layer by name.
  void add_to(lora::LoraModel<Scalar>& model) requires(!Layers::trains_norms) {
    for_each_linear([&](const std::string& name, auto& layer) { model.add(name, layer); });
  }

  /// Handles on all that trains, by the names above. Valid while the encoder stays where it is, and until adapters
  /// change. For AdaptedLayers the same as LoraModel::trainable_parameters() without a head.
  [[nodiscard]] std::vector<lora::Parameter<Scalar>> parameters() {
    std::vector<lora::Parameter<Scalar>> all;
    for_each_linear([&](const std::string& name, auto& layer) {
      for (lora::Parameter<Scalar> parameter : layer.parameters()) {
        parameter.rename(name + "." + parameter.name());
        all.push_back(std::move(parameter));
      }
    });
    if constexpr (Layers::trains_norms) {
      for_each_norm([&](const std::string& name, LayerNorm<Scalar>& norm) {
        all.push_back(norm.scale().parameter(name + ".scale", lora::ParameterRole::weight));
        all.push_back(norm.shift().parameter(name + ".shift", lora::ParameterRole::bias));
      });
    }
    return all;
  }

 private:
  using Layer = TransformerLayer<Layers>;

  [[nodiscard]] static std::string layer_name(std::size_t l) { return "transformer.layer_" + std::to_string(l) + "."; }

  // Calls visit(full name, layer) for every linear layer.
  template <class Visit>
  void for_each_linear(const Visit& visit) {
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      layers_[l].for_each_linear([&](const char* name, auto& layer) { visit(layer_name(l) + name, layer); });
    }
    visit("projection", projection_);
  }
  template <class Visit>
  void for_each_norm(const Visit& visit) {
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      layers_[l].for_each_norm([&](const char* name, auto& norm) { visit(layer_name(l) + name, norm); });
    }
  }

  [[nodiscard]] static const lora::Matrix<Scalar>& input_of(const Pass& pass, std::size_t layer) noexcept {
    return layer == 0 ? pass.input : pass.layers[layer - 1].output;
  }

  // Makes room, and fills pass.input: 2 e + position, since the graph adds the embedding e and e + position.
  void begin(const lora::Operation& operation, const PackedTexts& texts, Pass& pass) const {
    lora::with_ids(texts.ids, [&](const auto& ids) { lora::check_ids(operation, ids, vocabulary_size()); });
    pass.texts = texts;
    pass.layers.resize(layers_.size());
    pass.input.resize(texts.tokens(), embedding_.cols());
    const Index half = frequencies_.size();
    for (Index text = 0; text < texts.texts(); ++text) {
      for (Index position = 0; position < texts.length(text); ++position) {
        const Index row = texts.start(text) + position;
        const auto angles = frequencies_.array() * static_cast<Scalar>(position);
        pass.input.row(row) = Scalar(2) * embedding_.row(texts.ids[static_cast<std::size_t>(row)]);
        pass.input.row(row).head(half).array() += angles.sin();
        pass.input.row(row).tail(half).array() += angles.cos();
      }
    }
  }

  // The mean over each text's tokens; zero for a text without tokens.
  void pool(Pass& pass) const {
    const auto& tokens = pass.layers.back().output;
    pass.pooled.resize(pass.texts.texts(), tokens.cols());
    pass.projected.resize(pass.texts.texts(), embedding_size());
    for (Index i = 0; i < pass.texts.texts(); ++i) {
      const Index length = pass.texts.length(i);
      if (length == 0) {
        pass.pooled.row(i).setZero();
      } else {
        pass.pooled.row(i) =
            tokens.middleRows(pass.texts.start(i), length).colwise().sum() / static_cast<Scalar>(length);
      }
    }
  }
  static void pool_backward(Pass& pass) {
    pass.token_gradient.resize(pass.texts.tokens(), pass.pooled.cols());
    for (Index i = 0; i < pass.texts.texts(); ++i) {
      const Index length = pass.texts.length(i);
      if (length == 0) continue;
      pass.token_gradient.middleRows(pass.texts.start(i), length).rowwise() =
          pass.pooled_gradient.row(i) / static_cast<Scalar>(length);
    }
  }

  // e = t / sqrt(max(t . t, 1e-12)) with t = tanh(projected).
  static const lora::Matrix<Scalar>& normalise(Pass& pass) {
    pass.projected = pass.projected.array().tanh();
    pass.inverse_norms = pass.projected.rowwise().squaredNorm().cwiseMax(Scalar(1e-12)).cwiseSqrt().cwiseInverse();
    pass.embeddings = pass.inverse_norms.asDiagonal() * pass.projected;
    return pass.embeddings;
  }
  // dt = (de - e (e . de)) / norm, or de / norm where the norm is cut off; dprojected = dt (1 - t^2).
  static void normalise_backward(const lora::Matrix<Scalar>& gradient, Pass& pass) {
    pass.projected_gradient.resize(gradient.rows(), gradient.cols());
    for (Index i = 0; i < gradient.rows(); ++i) {
      const bool cut_off = pass.inverse_norms[i] >= Scalar(1e6);
      const Scalar along = cut_off ? Scalar(0) : gradient.row(i).dot(pass.embeddings.row(i));
      pass.projected_gradient.row(i).array() = (gradient.row(i) - along * pass.embeddings.row(i)).array() *
                                               pass.inverse_norms[i] *
                                               (Scalar(1) - pass.projected.row(i).array().square());
    }
  }

  lora::Matrix<Scalar> embedding_;       // vocabulary x in
  lora::RowVector<Scalar> frequencies_;  // in / 2
  std::vector<Layer> layers_;
  typename Layers::Linear projection_;
};

}  // namespace examples::sentence_encoder
