// SPDX-License-Identifier: MIT
// LoRA for the GPT-2 of llm.c: query, key, value and the projection of attention are adapted, all else is frozen.
//
// Include this after llm.c's declarations (GPT2, layernorm_forward, ...). llm.c itself stays as it is: its weights are
// viewed where they lie, its activations are filled as gpt2_forward fills them, and merging writes into its weights, so
// that its own inference then answers with the adapter.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "lora/lora.hpp"

namespace hosts {

class Gpt2Lora {
  using Weight = lora::DenseWeight<float>;
  using Bias = Eigen::Map<const lora::RowVector<float>>;

 public:
  using Qkv = lora::MergedLinear<float, Weight>;
  using Projection = lora::LoraLinear<float, Weight>;

  /// What is adapted in one Transformer block.
  struct Block {
    Qkv qkv;
    Projection attproj;
    lora::LoraTape<float> qkv_tape{}, attproj_tape{};
  };

  /// `model` outlives this object. Block l takes the seeds `seed + 2 l` and `seed + 2 l + 1`.
  Gpt2Lora(GPT2& model, const lora::LoraConfig& config, std::uint64_t seed)
      : model_(model), wte_(view(model.params.wte, model.config.padded_vocab_size, channels())) {
    const lora::Index c = channels();
    blocks_.reserve(static_cast<std::size_t>(model.config.num_layers));
    for (lora::Index l = 0; l < model.config.num_layers; ++l) {
      const ParameterTensors& p = model.params;
      const std::uint64_t block_seed = seed + 2 * static_cast<std::uint64_t>(l);
      blocks_.push_back(
          {Qkv(view(p.qkvw + l * 3 * c * c, 3 * c, c), Bias(p.qkvb + l * 3 * c, 3 * c), {true, true, true}, config,
               block_seed),
           Projection(view(p.attprojw + l * c * c, c, c), Bias(p.attprojb + l * c, c), config, block_seed + 1)});
      fc_.push_back(view(p.fcw + l * 4 * c * c, 4 * c, c));
      fcproj_.push_back(view(p.fcprojw + l * 4 * c * c, c, 4 * c));
    }
  }

  /// gpt2_forward with the adapters. Fills `model.acts` and `model.mean_loss`. Dropout draws anew in every call.
  void forward(const int* inputs, const int* targets, int batch, int length) {
    reserve(batch, length);
    std::copy_n(inputs, rows(), model_.inputs);
    std::copy_n(targets, rows(), model_.targets);
    const ActivationTensors& a = model_.acts;
    const ParameterTensors& p = model_.params;
    const int c = model_.config.channels;
    encoder_forward(a.encoded, model_.inputs, p.wte, p.wpe, batch, length, c);
    for (int l = 0; l < model_.config.num_layers; ++l) forward_block(l);
    ++step_;
    layernorm_forward(a.lnf, a.lnf_mean, a.lnf_rstd, block_output(model_.config.num_layers - 1), p.lnfw, p.lnfb, batch,
                      length, c);
    multiply(wte_, a.lnf, nullptr, a.logits);
    const int padded = model_.config.padded_vocab_size;
    softmax_forward(a.probs, a.logits, batch, length, model_.config.vocab_size, padded);
    crossentropy_forward(a.losses, a.probs, model_.targets, batch, length, padded);
    model_.mean_loss = std::accumulate(a.losses, a.losses + rows(), 0.0F) / static_cast<float>(rows());
  }

  /// Adds to the adapters' gradients for the last forward pass. The gradient of what enters the first block (B T C,
  /// like llm.c's grads_acts.encoded) is computed only if `d_encoded` is given; it overwrites.
  void backward(float* d_encoded = nullptr) {
    const ActivationTensors& a = model_.acts;
    const int b = model_.batch_size, t = model_.seq_len, c = model_.config.channels;
    std::ranges::fill(d_losses_, 1.0F / static_cast<float>(rows()));
    std::ranges::fill(d_logits_, 0.0F);
    crossentropy_softmax_backward(d_logits_.data(), d_losses_.data(), a.probs, model_.targets, b, t,
                                  model_.config.vocab_size, model_.config.padded_vocab_size);
    multiply_back(wte_, d_logits_, d_branch_);
    std::ranges::fill(d_residual_, 0.0F);
    const int last = model_.config.num_layers - 1;
    layernorm_backward(d_residual_.data(), unused_.data(), unused_.data(), d_branch_.data(), block_output(last),
                       model_.params.lnfw, a.lnf_mean, a.lnf_rstd, b, t, c);
    for (int l = last; l >= 0; --l) backward_block(l, l > 0 || d_encoded != nullptr);
    if (d_encoded != nullptr) std::ranges::copy(d_residual_, d_encoded);
  }

  /// One step of the optimiser; then the gradients are zero.
  void update(lora::AdamW<float>& optimizer) {
    for (Block& block : blocks_) {
      optimizer.step(block.qkv);
      optimizer.step(block.attproj);
      block.qkv.zero_grad();
      block.attproj.zero_grad();
    }
  }

  /// Writes the adapters into llm.c's own weights, and takes them out again, bit for bit.
  void merge() {
    for (Block& block : blocks_) block.qkv.merge(), block.attproj.merge();
  }
  void unmerge() {
    for (Block& block : blocks_) block.qkv.unmerge(), block.attproj.unmerge();
  }

  [[nodiscard]] std::vector<Block>& blocks() noexcept { return blocks_; }

  /// Bytes beside llm.c's weights and activations.
  struct Memory {
    std::size_t parameters = 0;            ///< that train
    std::size_t gradients = 0;             ///< of these
    std::size_t optimizer = 0;             ///< moments
    std::size_t activation_gradients = 0;  ///< one block's, reused, and the logits'
    std::size_t tapes = 0;                 ///< what the adapters remember of a forward pass
  };
  [[nodiscard]] Memory memory() {
    Memory total;
    for (Block& block : blocks_) {
      add(block.qkv, total);
      add(block.attproj, total);
      total.tapes += block.qkv_tape.bytes() + block.attproj_tape.bytes();
    }
    for (const auto* buffer :
         {&d_losses_, &d_logits_, &d_residual_, &d_branch_, &d_qkv_, &d_attention_, &d_scores_, &d_hidden_, &d_gelu_}) {
      total.activation_gradients += buffer->size() * sizeof(float);
    }
    return total;
  }

 private:
  [[nodiscard]] lora::Index channels() const noexcept { return model_.config.channels; }
  [[nodiscard]] lora::Index rows() const noexcept { return lora::Index{model_.batch_size} * model_.seq_len; }

  [[nodiscard]] static Weight view(float* w, lora::Index outputs, lora::Index inputs) {
    return Weight(lora::MatrixView<float>{w, outputs, inputs});
  }
  [[nodiscard]] lora::MatrixView<float> as_rows(float* data, lora::Index columns) const noexcept {
    return {data, rows(), columns};
  }

  /// The residual stream after block l; before the first block for l = -1.
  [[nodiscard]] float* block_output(int l) const noexcept {
    return l < 0 ? model_.acts.encoded : model_.acts.residual3 + l * rows() * channels();
  }
  [[nodiscard]] lora::Index scores() const noexcept {  // of one block
    return lora::Index{model_.config.num_heads} * rows() * model_.seq_len;
  }

  void multiply(const Weight& w, float* x, const float* bias, float* y) {
    w.product(as_rows(x, w.in_features()), bias, {}, as_rows(y, w.out_features()), workspace_);
  }
  void multiply_back(const Weight& w, std::vector<float>& dy, std::vector<float>& dx) {
    w.product_transposed(as_rows(dy.data(), w.out_features()), {}, as_rows(dx.data(), w.in_features()), workspace_);
  }

  /// Activations as llm.c allocates them, and gradients for one block. @throws lora::ShapeError like gpt2_forward,
  /// which exits, when the batch is not the one that the activations were made for.
  void reserve(int batch, int length) {
    GPT2& m = model_;
    if (m.acts_memory == nullptr) {
      m.batch_size = batch;
      m.seq_len = length;
      fill_in_activation_sizes(m.act_sizes, m.config, batch, length);
      m.num_activations = std::accumulate(std::begin(m.act_sizes), std::end(m.act_sizes), std::size_t{0});
      m.acts_memory = malloc_and_point_activations(&m.acts, m.act_sizes);
      const std::size_t bytes = static_cast<std::size_t>(rows()) * sizeof(int);
      m.inputs = static_cast<int*>(mallocCheck(bytes));
      m.targets = static_cast<int*>(mallocCheck(bytes));
    }
    if (batch != m.batch_size || length != m.seq_len) {
      throw lora::ShapeError("Gpt2Lora::forward", "batch", lora::shape_text(m.batch_size, m.seq_len),
                             lora::shape_text(batch, length));
    }
    const auto n = static_cast<std::size_t>(rows()), c = static_cast<std::size_t>(channels());
    d_losses_.resize(n);
    d_logits_.resize(n * static_cast<std::size_t>(m.config.padded_vocab_size));
    for (auto* buffer : {&d_residual_, &d_branch_}) buffer->resize(n * c);
    d_qkv_.resize(3 * n * c);
    for (auto* buffer : {&d_attention_, &d_scores_}) buffer->resize(static_cast<std::size_t>(scores()));
    for (auto* buffer : {&d_hidden_, &d_gelu_}) buffer->resize(4 * n * c);
    unused_.resize(c);
  }

  void forward_block(int l) {
    const ActivationTensors& a = model_.acts;
    const ParameterTensors& p = model_.params;
    const int b = model_.batch_size, t = model_.seq_len, c = model_.config.channels;
    const lora::Index n = rows(), nc = n * c, hidden = 4 * nc;
    Block& block = blocks_[static_cast<std::size_t>(l)];
    float* const ln1 = a.ln1 + l * nc;
    float* const qkv = a.qkv + l * 3 * nc;
    float* const atty = a.atty + l * nc;
    float* const attproj = a.attproj + l * nc;
    float* const residual2 = a.residual2 + l * nc;
    float* const ln2 = a.ln2 + l * nc;
    float* const fch = a.fch + l * hidden;
    float* const fch_gelu = a.fch_gelu + l * hidden;
    float* const fcproj = a.fcproj + l * nc;
    float* const input = block_output(l - 1);

    layernorm_forward(ln1, a.ln1_mean + l * n, a.ln1_rstd + l * n, input, p.ln1w + l * c, p.ln1b + l * c, b, t, c);
    block.qkv_tape.position = {step_, 0};
    block.qkv.forward(as_rows(ln1, c), block.qkv_tape, as_rows(qkv, 3 * c), workspace_);
    attention_forward(atty, a.preatt + l * scores(), a.att + l * scores(), qkv, b, t, c, model_.config.num_heads);
    block.attproj_tape.position = {step_, 0};
    block.attproj.forward(as_rows(atty, c), block.attproj_tape, as_rows(attproj, c), workspace_);
    residual_forward(residual2, input, attproj, static_cast<int>(nc));
    layernorm_forward(ln2, a.ln2_mean + l * n, a.ln2_rstd + l * n, residual2, p.ln2w + l * c, p.ln2b + l * c, b, t, c);
    multiply(fc_[static_cast<std::size_t>(l)], ln2, p.fcb + l * 4 * c, fch);
    gelu_forward(fch_gelu, fch, static_cast<int>(hidden));
    multiply(fcproj_[static_cast<std::size_t>(l)], fch_gelu, p.fcprojb + l * c, fcproj);
    residual_forward(block_output(l), residual2, fcproj, static_cast<int>(nc));
  }

  /// Takes d_residual_ from behind block l to before it; only to the adapters if no input gradient is wanted. llm.c's
  /// functions add to what they are given. Its layernorm_backward always computes gradients of its own weights too.
  void backward_block(int l, bool input_gradient) {
    const ActivationTensors& a = model_.acts;
    const ParameterTensors& p = model_.params;
    const int b = model_.batch_size, t = model_.seq_len, c = model_.config.channels;
    const lora::Index n = rows(), nc = n * c, hidden = 4 * nc;
    Block& block = blocks_[static_cast<std::size_t>(l)];

    multiply_back(fcproj_[static_cast<std::size_t>(l)], d_residual_, d_gelu_);
    std::ranges::fill(d_hidden_, 0.0F);
    gelu_backward(d_hidden_.data(), a.fch + l * hidden, d_gelu_.data(), static_cast<int>(hidden));
    multiply_back(fc_[static_cast<std::size_t>(l)], d_hidden_, d_branch_);
    layernorm_backward(d_residual_.data(), unused_.data(), unused_.data(), d_branch_.data(), a.residual2 + l * nc,
                       p.ln2w + l * c, a.ln2_mean + l * n, a.ln2_rstd + l * n, b, t, c);

    const lora::MatrixView<float> d_branch = as_rows(d_branch_.data(), c);
    block.attproj.backward(as_rows(a.atty + l * nc, c), block.attproj_tape, as_rows(d_residual_.data(), c),
                           block.attproj.gradients(), d_branch, workspace_);
    for (auto* sums : {&d_qkv_, &d_attention_, &d_scores_}) std::ranges::fill(*sums, 0.0F);
    attention_backward(d_qkv_.data(), d_scores_.data(), d_attention_.data(), d_branch_.data(), a.qkv + l * 3 * nc,
                       a.att + l * scores(), b, t, c, model_.config.num_heads);

    const lora::MatrixView<float> ln1 = as_rows(a.ln1 + l * nc, c);
    const lora::MatrixView<float> d_qkv = as_rows(d_qkv_.data(), 3 * c);
    if (!input_gradient) {
      block.qkv.backward(ln1, block.qkv_tape, d_qkv, block.qkv.gradients(), workspace_);
      return;
    }
    block.qkv.backward(ln1, block.qkv_tape, d_qkv, block.qkv.gradients(), d_branch, workspace_);
    layernorm_backward(d_residual_.data(), unused_.data(), unused_.data(), d_branch_.data(), block_output(l - 1),
                       p.ln1w + l * c, a.ln1_mean + l * n, a.ln1_rstd + l * n, b, t, c);
  }

  template <class Layer>
  static void add(Layer& layer, Memory& total) {
    for (const auto& parameter : layer.parameters()) {
      total.parameters += static_cast<std::size_t>(parameter.size()) * sizeof(float);
      total.optimizer += parameter.moments().bytes();
    }
    total.gradients += layer.gradients().bytes();
  }

  GPT2& model_;
  Weight wte_;
  std::vector<Weight> fc_, fcproj_;
  std::vector<Block> blocks_;
  std::uint64_t step_ = 0;
  lora::Workspace workspace_;
  std::vector<float> d_losses_, d_logits_, d_residual_, d_branch_, d_qkv_, d_attention_, d_scores_, d_hidden_, d_gelu_;
  std::vector<float> unused_;  // gradients of layer norms, which do not train
};

}  // namespace hosts
