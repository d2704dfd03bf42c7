// SPDX-License-Identifier: MIT
// One layer of the encoder: attention and feed-forward, each behind a layer norm and beside a residual.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "lora/core/types.hpp"
#include "lora/core/workspace.hpp"
#include "sentence_encoder/attention.hpp"
#include "sentence_encoder/encoder_weights.hpp"
#include "sentence_encoder/layer_norm.hpp"
#include "sentence_encoder/linear_kinds.hpp"
#include "sentence_encoder/packed_texts.hpp"

namespace examples::sentence_encoder {

/// What one pass through a layer keeps: T tokens, `in` and `out` features, `hidden` of the feed-forward.
template <class Layers>
struct LayerPass {
  using Matrix = lora::Matrix<typename Layers::Scalar>;
  using Norm = NormRecord<typename Layers::Scalar>;
  using Tape = typename Layers::Linear::Tape;

  Norm attention_norm;
  Matrix normed;  ///< T x in
  Matrix qkv;     ///< T x 3 in
  AttentionRecord<typename Layers::Scalar> attention;
  Matrix context;   ///< T x in
  Matrix attended;  ///< T x out: residual and attention
  Matrix residual;  ///< T x out, where the residual has a kernel
  Norm ffn_norm;
  Matrix ffn_normed;  ///< T x out
  Matrix hidden;      ///< T x hidden, after max(0, .)
  Matrix output;      ///< T x out

  typename Layers::Qkv::Tape qkv_tape;
  Tape output_tape;
  Tape residual_tape;
  Tape hidden_tape;
  Tape ffn_tape;

  Matrix hidden_gradient;
  Matrix normed_gradient;
  Matrix context_gradient;
  Matrix qkv_gradient;
};

/// h = r(x) + output(attention(qkv(norm(x)))), y = h + ffn_output(max(0, ffn_hidden(ffn_norm(h)))), where r is x itself
/// or, where the layer changes the width, a linear layer.
template <class LayersType>
class TransformerLayer {
 public:
  using Layers = LayersType;
  using Scalar = typename Layers::Scalar;
  using Matrix = lora::Matrix<Scalar>;
  using Linear = typename Layers::Linear;
  using Pass = LayerPass<Layers>;

  TransformerLayer(LayerWeights<Scalar> weights, Index heads, const Layers& layers)
      : attention_norm_(std::move(weights.attention_norm)),
        qkv_(layers.make_qkv(weights.qkv)),
        attention_(heads),
        output_(layers.make_linear(weights.output)),
        ffn_norm_(std::move(weights.ffn_norm)),
        ffn_hidden_(layers.make_linear(weights.ffn_hidden)),
        ffn_output_(layers.make_linear(weights.ffn_output)) {
    if (weights.residual.kernel.size() > 0) residual_.emplace(layers.make_linear(weights.residual));
  }

  [[nodiscard]] Index out_features() const noexcept { return ffn_output_.out_features(); }

  /// Y (T x out), which stays in the pass.
  const Matrix& infer(const PackedTexts& texts, const Matrix& x, Pass& pass, lora::Workspace& workspace) const {
    return run(texts, x, pass, workspace, [&](const auto& layer, const Matrix& in, auto& /*tape*/, Matrix& out) {
      layer.infer(in, out, workspace);
    });
  }

  /// The same in training, with dropout at `position`.
  const Matrix& forward(const PackedTexts& texts, const Matrix& x, const BatchPosition& position, Pass& pass,
                        lora::Workspace& workspace) const {
    return run(texts, x, pass, workspace, [&](const auto& layer, const Matrix& in, auto& tape, Matrix& out) {
      set_position(tape, position.step, position.first_token);
      layer.forward(in, tape, out, workspace);
    });
  }

  /// From dY in `gradient` to the gradients of what trains, and, unless the layer is the first, dX in `gradient`.
  void backward(const PackedTexts& texts, const Matrix& x, Matrix& gradient, bool first, Pass& pass,
                lora::Workspace& workspace) {
    feed_forward_backward(gradient, pass, workspace);
    attention_backward(texts, x, gradient, pass, workspace);
    const bool passes_on = !first || Layers::trains_norms;
    if (!passes_on) {
      qkv_.backward(pass.normed, pass.qkv_tape, pass.qkv_gradient, qkv_.gradients(), workspace);
    } else {
      pass.normed_gradient.resize(x.rows(), x.cols());
      qkv_.backward(pass.normed, pass.qkv_tape, pass.qkv_gradient, qkv_.gradients(), pass.normed_gradient, workspace);
    }
    residual_backward(x, gradient, first, pass, workspace);
    if constexpr (Layers::trains_norms) {
      attention_norm_.parameter_gradients(x, pass.attention_norm, pass.normed_gradient);
    }
    if (!first) attention_norm_.backward(x, pass.attention_norm, pass.normed_gradient, gradient);
  }

  /// Calls visit(name, layer) for every linear layer, in order.
  template <class Visit>
  void for_each_linear(const Visit& visit) {
    visit("attention.qkv", qkv_);
    visit("attention.output", output_);
    if (residual_) visit("residual", *residual_);
    visit("ffn.hidden", ffn_hidden_);
    visit("ffn.output", ffn_output_);
  }
  /// Calls visit(name, norm) for both layer norms.
  template <class Visit>
  void for_each_norm(const Visit& visit) {
    visit("attention.norm", attention_norm_);
    visit("ffn.norm", ffn_norm_);
  }

  /// Layers without dropout have no position.
  template <class Tape>
  static void set_position(Tape& tape, std::uint64_t step, Index first_row) {
    if constexpr (requires { tape.position; }) tape.position = {step, first_row};
  }

 private:
  template <class Apply>
  const Matrix& run(const PackedTexts& texts, const Matrix& x, Pass& pass, lora::Workspace& workspace,
                    const Apply& apply) const {
    const Index tokens = x.rows();
    attention_norm_.forward(x, pass.attention_norm, pass.normed);
    pass.qkv.resize(tokens, qkv_.out_features());
    apply(qkv_, pass.normed, pass.qkv_tape, pass.qkv);
    pass.context.resize(tokens, output_.in_features());
    attention_.forward(texts, pass.qkv, pass.attention, pass.context, workspace.executor());
    pass.attended.resize(tokens, out_features());
    apply(output_, pass.context, pass.output_tape, pass.attended);
    if (residual_) {
      pass.residual.resize(tokens, out_features());
      apply(*residual_, x, pass.residual_tape, pass.residual);
      pass.attended += pass.residual;
    } else {
      pass.attended += x;
    }
    ffn_norm_.forward(pass.attended, pass.ffn_norm, pass.ffn_normed);
    pass.hidden.resize(tokens, ffn_hidden_.out_features());
    apply(ffn_hidden_, pass.ffn_normed, pass.hidden_tape, pass.hidden);
    pass.hidden = pass.hidden.cwiseMax(Scalar(0));
    pass.output.resize(tokens, out_features());
    apply(ffn_output_, pass.hidden, pass.ffn_tape, pass.output);
    pass.output += pass.attended;
    return pass.output;
  }

  // dH from dY, in place.
  void feed_forward_backward(Matrix& gradient, Pass& pass, lora::Workspace& workspace) {
    pass.hidden_gradient.resize(pass.hidden.rows(), pass.hidden.cols());
    ffn_output_.backward(pass.hidden, pass.ffn_tape, gradient, ffn_output_.gradients(), pass.hidden_gradient,
                         workspace);
    pass.hidden_gradient = (pass.hidden.array() > Scalar(0)).select(pass.hidden_gradient, Scalar(0));
    pass.normed_gradient.resize(gradient.rows(), gradient.cols());
    ffn_hidden_.backward(pass.ffn_normed, pass.hidden_tape, pass.hidden_gradient, ffn_hidden_.gradients(),
                         pass.normed_gradient, workspace);
    if constexpr (Layers::trains_norms) {
      ffn_norm_.parameter_gradients(pass.attended, pass.ffn_norm, pass.normed_gradient);
    }
    ffn_norm_.backward(pass.attended, pass.ffn_norm, pass.normed_gradient, gradient);
  }

  // dQKV from dH.
  void attention_backward(const PackedTexts& texts, const Matrix& x, const Matrix& gradient, Pass& pass,
                          lora::Workspace& workspace) {
    pass.context_gradient.resize(x.rows(), output_.in_features());
    output_.backward(pass.context, pass.output_tape, gradient, output_.gradients(), pass.context_gradient, workspace);
    pass.qkv_gradient.resize(x.rows(), qkv_.out_features());
    attention_.backward(texts, pass.qkv, pass.attention, pass.context_gradient, pass.qkv_gradient,
                        workspace.executor());
  }

  // dX of the residual from dH, in place.
  void residual_backward(const Matrix& x, Matrix& gradient, bool first, Pass& pass, lora::Workspace& workspace) {
    if (!residual_) return;
    if (first) {
      residual_->backward(x, pass.residual_tape, gradient, residual_->gradients(), workspace);
    } else {
      pass.context_gradient.resize(x.rows(), x.cols());
      residual_->backward(x, pass.residual_tape, gradient, residual_->gradients(), pass.context_gradient, workspace);
      gradient.swap(pass.context_gradient);
    }
  }

  LayerNorm<Scalar> attention_norm_;
  typename Layers::Qkv qkv_;
  Attention<Scalar> attention_;
  Linear output_;
  std::optional<Linear> residual_;
  LayerNorm<Scalar> ffn_norm_;
  Linear ffn_hidden_;
  Linear ffn_output_;
};

}  // namespace examples::sentence_encoder
