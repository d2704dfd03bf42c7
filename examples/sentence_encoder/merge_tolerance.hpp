// SPDX-License-Identifier: MIT
// How far the answers of a merged and an unmerged encoder may lie apart.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "lora/core/random.hpp"
#include "sentence_encoder/text_classifier_impl.hpp"

namespace examples::sentence_encoder {

/// Bounds the largest |merged - unmerged| of a logit, to first order in the unit roundoff u.
///
/// One linear layer on an input a of k elements computes (W0 + s B A) a + b, unmerged as b + W0 a + (s B)(A a), merged
/// with the sum of weights rounded. Rounding errors are taken as independent, with mean 0 and at most u / sqrt(3) in
/// deviation, relative to the partial sum they arise at (Higham, Mary, "A new approach to probabilistic rounding error
/// analysis", SIAM J. Sci. Comput. 41, 2019). Partial sums of n terms t_i of either sign grow as sqrt(i / n) |t|, so
/// one sum errs by u sqrt(n / 6) |t| in deviation, and two that have nothing to do with each other differ by
///
///     q = u sqrt(n / 3) |t|,   |t|^2 <= b^2 + sum_i (|W0| + s |B||A|)_i^2 a_i^2,   n = k + r + 2,
///
/// beside what all outputs share, the errors of A a: p = s B e, e_j = u sqrt(k / 6) sqrt(sum_i A_ji^2 a_i^2). Lanes and
/// blocks, which real kernels sum in, only make both smaller.
///
/// What the layers above make of such differences has no closed form (norms, attention, tanh), so it is measured: every
/// layer's bias is moved by K (+-q +- p), with random signs and the largest q and e of any token, and the change of the
/// logits is divided by K. K = 1024 lifts it above rounding and keeps it linear, K q being some 1e-3 of an output. The
/// largest of thousands of changes is some four deviations.
///
/// The head, which is not merged, rounds embeddings that differ: its logits err by q too, with its own terms, and three
/// roundings more of each for tanh and the division by the length. They add four deviations to what was measured, and
/// count alone where tanh is so close to 1 that nothing below it is seen. Three times the sum is the bound.
template <class Layers>
class MergeTolerance {
 public:
  MergeTolerance(const EncoderWeights<float>& weights, const Adapter& adapter) : weights_(weights), adapter_(adapter) {}

  [[nodiscard]] double operator()(std::span<const TokenIds> texts) {
    constexpr int draws = 4;
    constexpr double safety = 3;
    const double head = measure_inputs(texts);
    const auto unmoved = make_text_classifier_with<Layers>(weights_, adapter_)->logits(texts);
    double largest = 0;
    for (int draw = 0; draw < draws; ++draw) {
      const auto logits = make_text_classifier_with<Layers>(moved(draw), adapter_)->logits(texts);
      largest = std::max(largest, static_cast<double>((logits - unmoved).cwiseAbs().maxCoeff()) / magnification);
    }
    return safety * (largest + 4 * head);
  }

 private:
  static constexpr float magnification = 1024;
  static constexpr float unit_roundoff = std::numeric_limits<float>::epsilon() / 2;

  struct Bound {
    lora::RowVector<float> independent;  // q, the largest of any token
    lora::RowVector<float> inner;        // e, likewise
  };

  // Calls visit(name, weights) for every linear layer.
  template <class Weights, class Visit>
  static void for_each_linear(Weights& weights, const Visit& visit) {
    for (std::size_t l = 0; l < weights.layers.size(); ++l) {
      auto& layer = weights.layers[l];
      const std::string name = "transformer.layer_" + std::to_string(l) + ".";
      visit(name + "attention.qkv", layer.qkv);
      visit(name + "attention.output", layer.output);
      if (layer.residual.kernel.size() > 0) visit(name + "residual", layer.residual);
      visit(name + "ffn.hidden", layer.ffn_hidden);
      visit(name + "ffn.output", layer.ffn_output);
    }
    visit("projection", weights.projection);
  }

  // Fills bounds_ and returns q of the head.
  [[nodiscard]] double measure_inputs(std::span<const TokenIds> texts) {
    SentenceEncoder<Layers> encoder(weights_);
    lora::LoraModel<float> model;
    encoder.add_to(model);
    lora::LoraModelConfig config = adapter_.config;
    lora::AdapterWeights<float> state = adapter_.weights;
    config.modules_to_save.clear();
    state.saved.clear();
    model.load(config, state);
    EncoderPass<Layers> pass;
    encoder.infer(pack(texts), pass);
    const auto input = [&](const std::string& name) -> const lora::Matrix<float>& {
      if (name == "projection") return pass.pooled;
      const auto& layer = name.find("layer_0") != std::string::npos ? pass.layers[0] : pass.layers[1];
      if (name.ends_with("qkv")) return layer.normed;
      if (name.ends_with("attention.output")) return layer.context;
      if (name.ends_with("residual")) return pass.input;
      return name.ends_with("hidden") ? layer.ffn_normed : layer.hidden;
    };
    for_each_linear(weights_, [&](const std::string& name, const LinearWeights<float>& linear) {
      bounds_[name] = bound(linear, adapter_.weights.modules.at(name), input(name).cwiseAbs2());
    });
    return head_deviation(pass.embeddings);
  }

  // Both sides' three roundings of each term count as six of a sum's.
  [[nodiscard]] double head_deviation(const lora::Matrix<float>& embeddings) const {
    const auto& bias = adapter_.weights.saved.at("head.bias").values;
    const auto& weight = adapter_.weights.saved.at("head.weight").values;
    const Index classes = static_cast<Index>(bias.size());
    const Index d = embeddings.cols();
    const lora::Matrix<float> squares = Eigen::Map<const lora::Matrix<float>>(weight.data(), classes, d).cwiseAbs2();
    lora::Matrix<float> terms = static_cast<float>(d) * embeddings.cwiseAbs2() * squares.transpose();
    terms.rowwise() += Eigen::Map<const lora::RowVector<float>>(bias.data(), classes).cwiseAbs2();
    return deviation(d + 1 + 6, 1.0F / 3) * std::sqrt(terms.maxCoeff());
  }

  // Of a sum: u sqrt(operations * share), relative to the length of its terms.
  [[nodiscard]] static float deviation(Index operations, float share) {
    return unit_roundoff * std::sqrt(static_cast<float>(operations) * share);
  }

  // `squares` holds a_i^2, one row a token.
  [[nodiscard]] static Bound bound(const LinearWeights<float>& linear, const lora::ModuleWeights<float>& module,
                                   const lora::Matrix<float>& squares) {
    const auto s = static_cast<float>(std::abs(module.scaling));
    const lora::Matrix<float> low_rank = s * (module.B.cwiseAbs() * module.A.cwiseAbs());
    lora::Matrix<float> terms = squares * (linear.kernel.cwiseAbs() + low_rank.transpose()).cwiseAbs2();
    terms.rowwise() += lora::RowVector<float>(linear.bias.cwiseAbs2());
    const lora::Matrix<float> inner = squares * module.A.cwiseAbs2().transpose();
    const Index k = linear.kernel.rows();
    return {deviation(k + module.A.rows() + 2, 1.0F / 3) * terms.colwise().maxCoeff().cwiseSqrt(),
            deviation(k, 1.0F / 6) * inner.colwise().maxCoeff().cwiseSqrt()};
  }

  [[nodiscard]] EncoderWeights<float> moved(int draw) const {
    EncoderWeights<float> weights = weights_;
    std::uint64_t stream = 0;
    const auto signs = [&](Index count) {
      lora::RowVector<float> values(count);
      lora::fill_uniform(lora::view_of(values), 1.0, lora::RandomStream(static_cast<std::uint64_t>(draw), stream++));
      return lora::RowVector<float>(values.array().sign());
    };
    for_each_linear(weights, [&](const std::string& name, LinearWeights<float>& linear) {
      const Bound& bound = bounds_.at(name);
      const auto& module = adapter_.weights.modules.at(name);
      const lora::RowVector<float> shared = bound.inner.cwiseProduct(signs(bound.inner.size()));
      linear.bias += magnification * (bound.independent.cwiseProduct(signs(linear.bias.size())) +
                                      static_cast<float>(module.scaling) * (shared * module.B.transpose()));
    });
    return weights;
  }

  const EncoderWeights<float>& weights_;
  const Adapter& adapter_;
  std::map<std::string, Bound> bounds_;
};

}  // namespace examples::sentence_encoder
