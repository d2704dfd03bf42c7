// SPDX-License-Identifier: MIT
// The little network whose adapters are among the golden vectors, written against the public API.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/parameter.hpp"
#include "lora/io/safetensors.hpp"
#include "lora/layers/embedding.hpp"
#include "lora/layers/linear.hpp"
#include "lora/model/lora_model.hpp"

namespace lora::testing {

/// x = embed[ids]; `layers` times: x += q_proj(x) * sigmoid(v_proj(x)), x += mlp.down(relu(mlp.up(x))); head(x).
/// The head is a layer, or two parameters where an adapter saves it whole.
class GoldenNetwork {
 public:
  struct Block {
    LoraLinear<float> q_proj;
    LoraLinear<float> v_proj;
    LoraLinear<float> up;
    LoraLinear<float> down;
  };

  GoldenNetwork(const SafetensorsFile& base, Index layers, bool up_is_transposed, bool head_is_saved)
      : embed_(base.matrix<float>("model.embed.weight"), LoraConfig{.rank = 0}, 0) {
    for (Index i = 0; i < layers; ++i) {
      const std::string prefix = "model.layers." + std::to_string(i) + ".";
      blocks_.push_back(std::make_unique<Block>(Block{linear(base, prefix + "q_proj"), linear(base, prefix + "v_proj"),
                                                      linear(base, prefix + "mlp.up", up_is_transposed),
                                                      linear(base, prefix + "mlp.down")}));
    }
    if (head_is_saved) {
      head_weight_.value = base.matrix<float>("model.head.weight");
      head_bias_.value = base.matrix<float>("model.head.bias");
    } else {
      head_.emplace(linear(base, "model.head"));
    }
  }

  /// Registers every layer under the name it has in the files.
  void add_to(LoraModel<float>& model) {
    model.add("model.embed", embed_);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const std::string prefix = "model.layers." + std::to_string(i) + ".";
      model.add(prefix + "q_proj", blocks_[i]->q_proj);
      model.add(prefix + "v_proj", blocks_[i]->v_proj);
      model.add(prefix + "mlp.up", blocks_[i]->up);
      model.add(prefix + "mlp.down", blocks_[i]->down);
    }
    if (head_) {
      model.add("model.head", *head_);
    } else {
      model.add("model.head.weight", head_weight_);
      model.add("model.head.bias", head_bias_);
    }
  }

  [[nodiscard]] Matrix<float> infer(const std::vector<std::int64_t>& ids) const {
    Matrix<float> x = embed_.infer(ids);
    for (const auto& block : blocks_) {
      const Matrix<float> gate = block->v_proj.infer(x);
      x += (block->q_proj.infer(x).array() / (1 + (-gate.array()).exp())).matrix();
      x += block->down.infer(Matrix<float>(block->up.infer(x).cwiseMax(0)));
    }
    if (head_) return head_->infer(x);
    Matrix<float> y = x * head_weight_.value.transpose();
    y.rowwise() += RowVector<float>(head_bias_.value);
    return y;
  }

  /// Every weight and bias as inference uses it now, by the name it has in the files.
  [[nodiscard]] std::vector<std::pair<std::string, Matrix<float>>> weights() const {
    std::vector<std::pair<std::string, Matrix<float>>> result;
    result.emplace_back("model.embed.weight", embed_.weight());
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const std::string prefix = "model.layers." + std::to_string(i) + ".";
      collect(prefix + "q_proj", blocks_[i]->q_proj, result);
      collect(prefix + "v_proj", blocks_[i]->v_proj, result);
      collect(prefix + "mlp.up", blocks_[i]->up, result);
      collect(prefix + "mlp.down", blocks_[i]->down, result);
    }
    if (head_) {
      collect("model.head", *head_, result);
    } else {
      result.emplace_back("model.head.weight", head_weight_.value);
      result.emplace_back("model.head.bias", head_bias_.value);
    }
    return result;
  }

 private:
  static LoraLinear<float> linear(const SafetensorsFile& base, const std::string& name, bool transposed = false) {
    const LoraConfig plain{.rank = 0, .fan_in_fan_out = transposed};
    const auto weight = base.matrix<float>(name + ".weight");
    if (!base.contains(name + ".bias")) return {weight, plain, 0};
    return {weight, RowVector<float>(base.matrix<float>(name + ".bias")), plain, 0};
  }

  static void collect(const std::string& name, const LoraLinear<float>& layer,
                      std::vector<std::pair<std::string, Matrix<float>>>& result) {
    result.emplace_back(name + ".weight", layer.weight());
    if (layer.has_bias()) result.emplace_back(name + ".bias", Matrix<float>(layer.bias()));
  }

  LoraEmbedding<float> embed_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::optional<LoraLinear<float>> head_;
  Trainable<float> head_weight_;
  Trainable<float> head_bias_;
};

}  // namespace lora::testing
