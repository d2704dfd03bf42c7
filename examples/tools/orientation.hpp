// SPDX-License-Identifier: MIT
// How the weights of a checkpoint are stored: (out, in) as torch's Linear does, or (in, out) as GPT-2's Conv1D does.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "adapter_file.hpp"
#include "checkpoint.hpp"
#include "lora/core/error.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora::tools {

/// Modules whose storage the user has named, by the end of their names.
struct StoredAs {
  std::vector<std::string> linear;  ///< (out, in)
  std::vector<std::string> conv1d;  ///< (in, out)
};

/// Whether a module is an embedding, by its name: the tensors of a checkpoint do not say it.
[[nodiscard]] inline bool is_embedding_name(std::string_view module) {
  const std::string_view last = module.substr(module.rfind('.') + 1);
  if (last == "embed_out") return false;
  return last.find("embed") != std::string_view::npos || last == "wte" || last == "wpe" || last == "shared" ||
         last == "token_embd";
}

/// Decides by what is known, in this order: the shape; the user's word; for GPT-2's names, what the other modules of
/// these names are; the configuration's fan_in_fan_out.
class Orientation {
 public:
  Orientation(const Checkpoint& base, const AdapterFile& adapter, const std::string& prefix, const StoredAs& named)
      : named_(named), fan_in_fan_out_(adapter.config.lora.fan_in_fan_out && base.gguf() == nullptr) {
    for (const auto& [name, module] : adapter.weights.modules) {
      const auto tensor = base.find(prefix + name + ".weight");
      if (tensor && module.kind == ModuleKind::linear && has_conv1d_name(name)) learn(by_shape(module, *tensor));
    }
    // A bias has as many elements as the weight has outputs.
    for (const auto& name : base.names()) {
      if (!name.ends_with(".weight") || !has_conv1d_name(name.substr(0, name.size() - 7))) continue;
      const auto weight = base.find(name);
      const auto bias = base.find(name.substr(0, name.size() - 6) + "bias");
      if (!bias || weight->shape.size() != 2 || weight->shape[0] == weight->shape[1]) continue;
      if (bias->size() == weight->shape[1]) learn(true);
      if (bias->size() == weight->shape[0]) learn(false);
    }
  }

  /// Whether the outputs of the module are the columns of its stored weight.
  /// @throws ConfigError when nothing decides, ShapeError when the user's word does not fit the shape
  [[nodiscard]] bool transposed(const std::string& name, const ModuleWeights<float>& module,
                                const TensorView& tensor) const {
    if (module.kind == ModuleKind::embedding) return true;
    if (module.kind != ModuleKind::linear) return false;
    const bool linear = is_named(named_.linear, name);
    const bool conv1d = is_named(named_.conv1d, name);
    if (linear && conv1d) {
      throw ConfigError("merge", in_quotes(name), "either --linear or --conv1d", "both");
    }
    const auto known = by_shape(module, tensor);
    if (known && (linear || conv1d) && *known != conv1d) {
      throw ShapeError(
          "merge", in_quotes(name),
          std::string("a weight stored ") + (linear ? "(out, in), as --linear" : "(in, out), as --conv1d") + " says",
          shape_text(tensor.shape) + ", which is stored the other way round");
    }
    if (known) return *known;
    if (linear || conv1d) return conv1d;
    if (has_conv1d_name(name) && !contradictory_) return conv1d_names_.value_or(true);
    if (!has_conv1d_name(name) && !fan_in_fan_out_) return false;
    throw ConfigError("merge", in_quotes(name),
                      "--conv1d " + last_part(name) + " if its weight is stored (in, out), or --linear " +
                          last_part(name) + " if it is stored (out, in)",
                      "a square weight: its shape does not tell");
  }

 private:
  [[nodiscard]] static std::string last_part(std::string_view name) {
    return std::string(name.substr(name.rfind('.') + 1));
  }

  [[nodiscard]] static bool has_conv1d_name(std::string_view name) {
    constexpr std::array<std::string_view, 4> names{"c_attn", "c_proj", "c_fc", "q_attn"};
    const std::string_view last = name.substr(name.rfind('.') + 1);
    return std::find(names.begin(), names.end(), last) != names.end();
  }

  [[nodiscard]] static bool is_named(const std::vector<std::string>& ends, std::string_view name) {
    return std::any_of(ends.begin(), ends.end(), [&](const std::string& end) {
      return name == end || (name.ends_with(end) && name[name.size() - end.size() - 1] == '.');
    });
  }

  /// Nothing for a square weight, or one that fits neither way.
  [[nodiscard]] static std::optional<bool> by_shape(const ModuleWeights<float>& module, const TensorView& tensor) {
    const Index out = module.B.rows();
    const Index in = module.A.cols();
    if (out == in) return std::nullopt;
    if (tensor.shape == std::vector<Index>{out, in}) return false;
    if (tensor.shape == std::vector<Index>{in, out}) return true;
    return false;  // the error of the shape is better told later
  }

  void learn(std::optional<bool> is_conv1d) {
    if (!is_conv1d || contradictory_) return;
    contradictory_ = conv1d_names_ && *conv1d_names_ != *is_conv1d;
    conv1d_names_ = contradictory_ ? std::nullopt : is_conv1d;
  }

  const StoredAs& named_;
  bool fan_in_fan_out_;
  std::optional<bool> conv1d_names_;
  bool contradictory_ = false;
};

}  // namespace lora::tools
