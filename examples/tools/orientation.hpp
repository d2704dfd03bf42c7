// SPDX-License-Identifier: MIT
// How the weights of a checkpoint are stored: (out, in) as torch's Linear does, or (in, out) as GPT-2's Conv1D does.
#pragma once

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "adapter_file.hpp"
#include "checkpoint.hpp"
#include "lora/core/error.hpp"
#include "lora/model/adapter_weights.hpp"
#include "module_names.hpp"
#include "storage.hpp"

namespace lora::tools {

/// Modules whose storage the user has named, by the end of their names.
struct StoredAs {
  std::vector<std::string> linear;  ///< (out, in)
  std::vector<std::string> conv1d;  ///< (in, out)
};

/// Whether a module of a checkpoint is an embedding: by its name, and because an embedding has no bias.
[[nodiscard]] inline bool is_embedding(const Checkpoint& checkpoint, const std::string& module) {
  return is_embedding_name(module) && !checkpoint.find(module + ".bias");
}

/// Whether a module's weight is stored (in, out), by its bias, which has as many elements as the weight has outputs.
/// Nothing for a square weight, one of 4 bits, and one without a bias.
[[nodiscard]] inline std::optional<bool> is_conv1d_by_bias(const Checkpoint& checkpoint, const std::string& module) {
  const auto weight = checkpoint.find(module + ".weight");
  const auto bias = checkpoint.find(module + ".bias");
  if (!weight || !bias || weight->shape.size() != 2 || weight->shape[0] == weight->shape[1]) return std::nullopt;
  if (!Storage::of(*weight).readable()) return std::nullopt;
  if (bias->size() == weight->shape[1]) return true;
  if (bias->size() == weight->shape[0]) return false;
  return std::nullopt;
}

/// Whether a configuration is of a family of models with Conv1D, or has a part of one; nothing if it names no family.
/// Source: huggingface/transformers, the models that use `pytorch_utils.Conv1D`.
[[nodiscard]] inline std::optional<bool> is_conv1d_by_family(const nlohmann::json& config) {
  constexpr std::array<std::string_view, 5> families{"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"};
  const auto is_of_one = [&](const nlohmann::json& part) {
    return std::find(families.begin(), families.end(), model_type_of(part)) != families.end();
  };
  if (model_type_of(config).empty()) return std::nullopt;
  return is_of_one(config) || std::any_of(config.begin(), config.end(), is_of_one);
}

/// What is known of all modules with the names of GPT-2's Conv1D: other families call linear layers so.
class Conv1dEvidence {
 public:
  void learn(std::optional<bool> is_conv1d) {
    if (!is_conv1d || contradictory_) return;
    contradictory_ = answer_ && *answer_ != *is_conv1d;
    answer_ = contradictory_ ? std::nullopt : is_conv1d;
  }
  /// By biases; where they do not tell, by the kind of model.
  void learn_from(const Checkpoint& checkpoint) {
    learn_from_biases(checkpoint);
    if (!answer_) learn(is_conv1d_by_family(checkpoint.config()));
  }
  [[nodiscard]] std::optional<bool> answer() const noexcept { return answer_; }
  [[nodiscard]] bool contradictory() const noexcept { return contradictory_; }

 private:
  void learn_from_biases(const Checkpoint& checkpoint) {
    constexpr std::string_view end = ".weight";
    for (const auto& name : checkpoint.names()) {
      if (!name.ends_with(end)) continue;
      const std::string module = name.substr(0, name.size() - end.size());
      if (has_conv1d_name(module)) learn(is_conv1d_by_bias(checkpoint, module));
    }
  }

  std::optional<bool> answer_;
  bool contradictory_ = false;
};

/// Tells which weights of a checkpoint are those of a Conv1D, without an adapter to compare their shapes with.
class Conv1dModules {
 public:
  /// The checkpoint must outlive it.
  explicit Conv1dModules(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {
    Conv1dEvidence evidence;
    evidence.learn_from(checkpoint);
    others_ = evidence.answer();
  }

  /// By the module's bias; then by other modules of these names; then by the kind of model. Nothing if none tells.
  [[nodiscard]] std::optional<bool> contain(const std::string& module) const {
    // A Conv1D always has a bias.
    if (!has_conv1d_name(module) || !checkpoint_.find(module + ".bias")) return false;
    const auto known = is_conv1d_by_bias(checkpoint_, module);
    return known ? known : others_;
  }

 private:
  const Checkpoint& checkpoint_;
  std::optional<bool> others_;
};

/// Decides by what is known, in this order: the shape; the user's word; for GPT-2's names, what the other modules of
/// these names are, then the kind of model; the configuration's fan_in_fan_out.
class Orientation {
 public:
  /// @throws ConfigError where the user has named what is no module of the adapter
  Orientation(const Checkpoint& base, const AdapterFile& adapter, const std::string& prefix, const StoredAs& named)
      : named_(named), fan_in_fan_out_(adapter.config.lora.fan_in_fan_out && base.gguf() == nullptr) {
    require_modules("--linear", named.linear, adapter);
    require_modules("--conv1d", named.conv1d, adapter);
    for (const auto& [name, module] : adapter.weights.modules) {
      const auto tensor = base.find(prefix + name + ".weight");
      const bool tells = tensor && module.kind == ModuleKind::linear && has_conv1d_name(name);
      if (tells) conv1d_names_.learn(by_shape(module, *tensor));
    }
    conv1d_names_.learn_from(base);
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
    if (has_conv1d_name(name) && !conv1d_names_.contradictory()) return conv1d_names_.answer().value_or(true);
    if (!has_conv1d_name(name) && !fan_in_fan_out_) return false;
    const std::string last(last_part(name));
    throw ConfigError(
        "merge", in_quotes(name),
        "--conv1d " + last + " if its weight is stored (in, out), or --linear " + last + " if it is stored (out, in)",
        "a square weight: its shape does not tell");
  }

 private:
  [[nodiscard]] static bool is_named(const std::vector<std::string>& ends, std::string_view name) {
    return std::any_of(ends.begin(), ends.end(), [&](const std::string& end) { return ends_with_name(name, end); });
  }

  static void require_modules(std::string_view option, const std::vector<std::string>& ends,
                              const AdapterFile& adapter) {
    for (const auto& end : ends) {
      const auto& modules = adapter.weights.modules;
      const auto is_it = [&](const auto& entry) { return ends_with_name(entry.first, end); };
      if (std::any_of(modules.begin(), modules.end(), is_it)) continue;
      throw ConfigError("merge", option, "modules of the adapter, by the end of their names", in_quotes(end));
    }
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

  const StoredAs& named_;
  bool fan_in_fan_out_;
  Conv1dEvidence conv1d_names_;
};

}  // namespace lora::tools
