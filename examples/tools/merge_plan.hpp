// SPDX-License-Identifier: MIT
// What merging an adapter changes in a checkpoint, as PEFT's merge_and_unload changes a model.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adapter_file.hpp"
#include "checkpoint.hpp"
#include "checkpoint_writer.hpp"
#include "config_text.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/core/error.hpp"
#include "lora/model/adapter_weights.hpp"
#include "module_names.hpp"
#include "orientation.hpp"
#include "storage.hpp"
#include "tensor_update.hpp"

namespace lora::tools {

struct MergeOptions {
  std::string prefix;  ///< of the adapter's module names in the checkpoint
  StoredAs stored;
  bool unmerge = false;
};

namespace detail {

/// The factors of a + b, where both change a weight of the same shape. @throws ConfigError for DoRA
[[nodiscard]] inline ModuleWeights<float> sum_of(const std::string& tensor, const ModuleWeights<float>& a,
                                                 const ModuleWeights<float>& b) {
  if (a.magnitude.size() > 0 || b.magnitude.size() > 0) {
    throw ConfigError("merge", in_quotes(tensor), "no DoRA where two modules share a weight", "DoRA");
  }
  ModuleWeights<float> sum;
  sum.A.resize(a.rank() + b.rank(), a.A.cols());
  sum.A << a.A, b.A;
  sum.B.resize(a.B.rows(), a.rank() + b.rank());
  sum.B << static_cast<float>(a.scaling) * a.B, static_cast<float>(b.scaling) * b.B;
  return sum;
}

/// The same change of a weight stored the other way round.
[[nodiscard]] inline ModuleWeights<float> transposed(ModuleWeights<float> module) {
  Matrix<float> a = module.B.transpose();
  module.B = module.A.transpose();
  module.A = std::move(a);
  return module;
}

/// s B A - s B0 A0 with the start A0, B0 that PiSSA and OLoRA compute from `weight` (out_features x in_features).
[[nodiscard]] inline ModuleWeights<float> without_start(const std::string& name, const LoraConfig& config,
                                                        const ModuleWeights<float>& module,
                                                        const Matrix<double>& weight) {
  LoraConfig start = config;
  start.rank = module.rank();
  start.use_rslora = false;
  start.alpha = module.scaling * static_cast<double>(module.rank());
  if (module.scaling < 0 && start.init_lora_weights == InitLoraWeights::pissa) {
    throw ConfigError("merge", in_quotes(name), "a scaling above 0 with pissa",
                      lora::detail::number_text(module.scaling));
  }
  const auto factors = factors_from_weight<double>("merge " + in_quotes(name), view_of(weight), start, 0);
  ModuleWeights<float> plain = module;
  plain.A.resize(2 * module.rank(), module.A.cols());
  plain.A << module.A, factors.A.cast<float>();
  plain.B.resize(module.B.rows(), 2 * module.rank());
  plain.B << module.B, -factors.B.cast<float>();
  return plain;
}

}  // namespace detail

/// The change of every tensor of the checkpoint, determined before anything is written.
class MergePlan {
 public:
  /// Refers to all three. @throws ConfigError, ShapeError, StateError: what does not fit, by name
  MergePlan(const Checkpoint& base, const AdapterFile& adapter, const MergeOptions& options)
      : base_(base),
        adapter_(adapter),
        options_(options),
        orientation_(base, adapter, options.prefix, options.stored),
        config_(base.config()) {
    require_finite(adapter.weights);
    if (options.unmerge) require_reversible();
    for (const auto& [name, module] : adapter.weights.modules) plan_module(name, module);
    for (const auto& [name, tensor] : adapter.weights.saved) plan_saved(name, tensor);
    if (!missing_.empty()) {
      throw ConfigError("merge", "checkpoint", "a tensor for every module of the adapter (--prefix may help)",
                        "none of " + missing_);
    }
    for (auto& [name, update] : updates_) finish(name, update);
    for (const auto& [name, module] : biases_) finish_bias(name, *module);
  }
  MergePlan(const MergePlan&) = delete;
  MergePlan& operator=(const MergePlan&) = delete;

  [[nodiscard]] const Changes& changes() const noexcept { return changes_; }
  /// What a person should know about the result.
  [[nodiscard]] const std::vector<std::string>& notes() const noexcept { return notes_; }
  /// Of writing the changes; known when they are written.
  [[nodiscard]] RoundingError error() const {
    RoundingError total;
    for (const auto& [name, error] : errors_) total += error;
    return total;
  }
  /// Of every tensor to which something is added, by name.
  [[nodiscard]] const std::map<std::string, RoundingError>& errors() const noexcept { return errors_; }

 private:
  struct Update {
    ModuleWeights<float> module;
    bool transposed = false;
  };

  static bool is_head(std::string_view module) {
    constexpr std::array<std::string_view, 5> names{"lm_head", "output", "embed_out", "proj_out", "decoder"};
    return std::find(names.begin(), names.end(), last_part(module)) != names.end();
  }

  void require_reversible() const {
    const auto refuse = [](const std::string& name, std::string_view expected) {
      throw ConfigError("unmerge", in_quotes(name), expected, "one that does");
    };
    for (const auto& [name, module] : adapter_.weights.modules) {
      if (module.magnitude.size() > 0) {
        throw ConfigError("unmerge", in_quotes(name),
                          "an adapter without DoRA: the norms it divided by are not in the checkpoint", "one with it");
      }
      if (takes_from_weight(adapter_.config.lora.init_lora_weights)) {
        refuse(name,
               "an adapter that takes no start out of the weight (pissa, olora): the checkpoint no longer has it");
      }
    }
    for (const auto& [name, tensor] : adapter_.weights.saved) {
      refuse(name, "an adapter that replaces no tensor whole: what was there is not in the checkpoint");
    }
  }

  void note(const std::string& text) { notes_.push_back(text); }
  void miss(const std::string& name) { missing_.append(missing_.empty() ? "" : ", ").append(in_quotes(name)); }

  /// The tensor as it is before factors are added: the adapter's own, if it replaces it.
  [[nodiscard]] std::optional<StoredTensor> source(const std::string& name) const {
    const auto base = base_.find(name);
    const auto saved = adapter_.weights.saved.find(name.substr(std::min(options_.prefix.size(), name.size())));
    if (saved == adapter_.weights.saved.end() || !name.starts_with(options_.prefix)) return base;
    return StoredTensor{
        {"adapter", saved->first, Dtype::F32, saved->second.shape, std::as_bytes(std::span(saved->second.values))},
        std::nullopt};
  }

  /// The one embedding of the checkpoint with a shape; nothing if there is none or more than one.
  [[nodiscard]] std::optional<std::string> embedding_of(const std::vector<Index>& shape) const {
    std::optional<std::string> found;
    for (const auto& name : base_.names()) {
      const bool embeds = name.ends_with(".weight") && is_embedding_name(module_of_parameter(name));
      if (!embeds || source(name)->shape != shape) continue;
      if (found) return std::nullopt;
      found = name;
    }
    return found;
  }

  [[nodiscard]] std::optional<bool> tie_word_embeddings() const {
    const auto found = config_.is_object() ? config_.find("tie_word_embeddings") : config_.end();
    if (!config_.is_object() || found == config_.end() || !found->is_boolean()) return std::nullopt;
    return found->template get<bool>();
  }

  /// The tensors that are a module's weight: usually one. A tied head shares that of the embedding, whether the
  /// checkpoint holds it once or twice.
  [[nodiscard]] std::vector<std::string> weights_of(const std::string& module, const std::vector<Index>& shape) {
    const std::string name = options_.prefix + module + ".weight";
    const bool may_be_tied = is_head(module) || is_embedding_name(module);
    if (!may_be_tied || (source(name) && tie_word_embeddings() != true)) return {name};
    if (!source(name)) {
      const auto shared = embedding_of(shape);
      if (!shared || (is_head(module) && tie_word_embeddings() == false)) return {name};
      note(in_quotes(name) + " is tied to " + in_quotes(*shared) + ": the change is in both");
      return {*shared};
    }
    std::vector<std::string> names = {name};
    for (const auto& other : base_.names()) {
      const std::string other_module = module_of_parameter(other);
      if (other == name || !other.ends_with(".weight") || is_head(module) == is_head(other_module)) continue;
      if (!is_head(other_module) && !is_embedding_name(other_module)) continue;
      const auto a = source(name);
      const auto b = source(other);
      if (a->shape == b->shape && std::equal(a->bytes.begin(), a->bytes.end(), b->bytes.begin(), b->bytes.end())) {
        note(in_quotes(name) + " and " + in_quotes(other) + " are tied: the change is in both");
        names.push_back(other);
      }
    }
    return names;
  }

  void plan_module(const std::string& name, const ModuleWeights<float>& module) {
    if (module.qalora_group_size > 0) {
      throw ConfigError("merge", in_quotes(name), "factors of the weight's own shape", "QALoRA");
    }
    std::vector<Index> tied_shape{module.B.rows(), module.A.cols()};
    if (module.kind == ModuleKind::embedding) std::swap(tied_shape[0], tied_shape[1]);
    for (const std::string& weight : weights_of(name, tied_shape)) {
      if (source(weight)) {
        add_update(name, weight, module);
      } else {
        miss(weight);
      }
    }
    if (module.lora_bias.size() == 0) return;
    const std::string bias = options_.prefix + name + ".bias";
    source(bias) ? static_cast<void>(biases_.emplace(bias, &module)) : miss(bias);
  }

  void add_update(const std::string& name, const std::string& weight, const ModuleWeights<float>& module) {
    const StoredTensor from = *source(weight);
    if (!Storage::of(from).readable()) {
      throw FormatError("merge", in_quotes(weight),
                        "F64, F32, F16 or BF16 (lora dequantize makes them of 4-bit weights of bitsandbytes)",
                        from.type_name());
    }
    Update update{module, orientation_.transposed(name, module, from)};
    if (takes_from_weight(adapter_.config.lora.init_lora_weights)) {
      update.module = detail::without_start(name, start_of(name, module, update.transposed), module,
                                            as_out_in(weight, from, module, update.transposed));
    }
    const auto [place, first] = updates_.try_emplace(weight, std::move(update));
    if (first) return;
    if (update.transposed != place->second.transposed) {
      update.module = detail::transposed(update.module);
      if (update.module.A.cols() != place->second.module.A.cols()) update.module = {};
    }
    require_same_shape(weight, place->second.module, update.module);
    place->second.module = detail::sum_of(weight, place->second.module, update.module);
  }

  static void require_same_shape(const std::string& weight, const ModuleWeights<float>& a,
                                 const ModuleWeights<float>& b) {
    if (a.A.cols() == b.A.cols() && a.B.rows() == b.B.rows()) return;
    throw ShapeError("merge", in_quotes(weight), "modules of one shape where they share a weight", "two that differ");
  }

  [[nodiscard]] const LoraConfig& start_of(const std::string& name, const ModuleWeights<float>& module,
                                           bool transposed) const {
    const LoraConfig& config = adapter_.config.lora;
    const bool pissa = config.init_lora_weights == InitLoraWeights::pissa;
    const auto refuse = [&](std::string_view expected, std::string_view got) {
      throw ConfigError("merge", in_quotes(name), expected, got);
    };
    if (module.kind != ModuleKind::linear) refuse("a linear module with pissa and olora", "another");
    if (pissa && config.pissa_niter > 0) {
      refuse("a start that can be computed again: pissa, which is exact",
             "pissa_niter_" + std::to_string(config.pissa_niter) + ", which is random");
    }
    if (!pissa && transposed) refuse("a weight stored (out, in) with olora", "one stored (in, out)");
    return config;
  }

  [[nodiscard]] static Matrix<double> as_out_in(const std::string& name, const StoredTensor& tensor,
                                                const ModuleWeights<float>& module, bool transposed) {
    Matrix<double> weight = values_of<double>(tensor);
    if (transposed) weight = Matrix<double>(weight.transpose());
    if (weight.rows() != module.B.rows() || weight.cols() != module.A.cols()) {
      throw ShapeError("merge", in_quotes(name),
                       std::to_string(module.B.rows()) + " x " + std::to_string(module.A.cols()),
                       std::to_string(weight.rows()) + " x " + std::to_string(weight.cols()));
    }
    return weight;
  }

  /// As the tensor is stored in the checkpoint, if it holds real numbers there.
  /// @throws FormatError for blocks that have no rule for writing
  [[nodiscard]] Storage storage_of_result(const std::string& name) const {
    const auto there = base_.find(name);
    if (!there || !Storage::of(*there).readable()) return usual_dtype();
    const Storage storage = Storage::of(*there);
    if (storage.writable()) return storage;
    throw FormatError("merge", in_quotes(name),
                      "a type that can be written: " + gguf_type_names(true) +
                          " (run lora dequantize first and merge into that, or serve the adapter unmerged)",
                      storage.name());
  }

  /// That of most of the checkpoint's numbers, for tensors that it does not have.
  [[nodiscard]] Dtype usual_dtype() const {
    std::map<Dtype, Index> sizes;
    for (const auto& name : base_.names()) {
      const StoredTensor tensor = *base_.find(name);
      if (converts_to_real(tensor.dtype)) sizes[tensor.dtype] += tensor.size();
    }
    const auto most =
        std::max_element(sizes.begin(), sizes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    return most == sizes.end() ? Dtype::F32 : most->first;
  }

  void finish(const std::string& name, Update& update) {
    const StoredTensor from = *source(name);
    const Storage stored = storage_of_result(name);
    const double sign = options_.unmerge ? -1.0 : 1.0;
    const auto set = [&](auto scalar) {
      using Scalar = decltype(scalar);
      const auto step =
          std::make_shared<TensorUpdate<Scalar>>(name, from, stored, update.module, update.transposed, sign);
      changes_.tensors[name] = {stored.dtype(), from.shape,
                                [this, name, step](const SafetensorsWriter::Sink& sink) {
                                  RoundingError& error = errors_[name];
                                  error = {};
                                  step->produce(sink, error);
                                },
                                stored.blocks()};
    };
    stored.dtype() == Dtype::F64 ? set(double{}) : set(float{});
  }

  void finish_bias(const std::string& name, const ModuleWeights<float>& module) {
    const StoredTensor from = *source(name);
    if (from.elements() != module.lora_bias.size()) {
      throw ShapeError("merge", in_quotes(name), std::to_string(module.lora_bias.size()) + " elements",
                       shape_text(from.shape));
    }
    const double factor = (options_.unmerge ? -1.0 : 1.0) * module.scaling;
    set_values(name, from,
               [factor, &module](Matrix<double>& bias) { bias += factor * module.lora_bias.cast<double>(); });
  }

  template <class Change>
  void set_values(const std::string& name, const StoredTensor& from, Change change) {
    const Storage stored = storage_of_result(name);
    const auto produce = [name, stored, from, change](const SafetensorsWriter::Sink& sink) {
      Matrix<double> values = values_of<double>(from);
      change(values);
      std::vector<std::byte> bytes;
      static_cast<void>(encode_finite(name, stored, values, bytes));
      sink(bytes);
    };
    changes_.tensors[name] = {stored.dtype(), from.shape, produce, stored.blocks()};
  }

  void plan_saved(const std::string& name, const SavedTensor<float>& saved) {
    const std::string full = options_.prefix + name;
    const auto there = base_.find(full);
    if (there && there->shape != saved.shape) resize(name, *there, saved);
    if (!there && !plan_new(name, saved)) return;
    set_values(full, *source(full), [](Matrix<double>&) {});
  }

  /// A vocabulary or a head of another size. @throws ShapeError for everything else
  void resize(const std::string& name, const TensorView& there, const SavedTensor<float>& saved) {
    const std::string module = module_of_parameter(name);
    const bool vocabulary = is_embedding_name(module) || is_head(module);
    const auto& saves = adapter_.config.modules_to_save;
    const bool whole = vocabulary || std::any_of(saves.begin(), saves.end(),
                                                 [&](const std::string& other) { return module.ends_with(other); });
    const bool fits = !there.shape.empty() && there.shape.size() == saved.shape.size() && saved.shape.size() <= 2 &&
                      std::equal(there.shape.begin() + 1, there.shape.end(), saved.shape.begin() + 1);
    if (!whole || !fits || base_.gguf() != nullptr) {
      throw ShapeError("merge", in_quotes(name), "the checkpoint's shape " + shape_text(there.shape),
                       shape_text(saved.shape));
    }
    note(in_quotes(name) + " has the shape " + shape_text(saved.shape) + " now, not " + shape_text(there.shape));
    const auto found = config_.is_object() ? config_.find("vocab_size") : config_.end();
    if (!vocabulary || !config_.is_object() || found == config_.end() || *found != there.shape.front()) return;
    *found = saved.shape.front();
    changes_.config = with_member(base_.config_file()->text, "vocab_size", saved.shape.front());
    note("config.json: vocab_size is " + std::to_string(saved.shape.front()) + " now");
  }

  /// A tensor of a module that the checkpoint does not have, such as a new head. False for one that is not needed, or
  /// does not belong to a module of its own.
  [[nodiscard]] bool plan_new(const std::string& name, const SavedTensor<float>& saved) {
    const std::string module = module_of_parameter(name);
    const std::string full = options_.prefix + name;
    const auto names = base_.names();
    const auto known = std::any_of(names.begin(), names.end(), [&](const std::string& other) {
      return module_of_parameter(other) == options_.prefix + module;
    });
    if (module.empty() || known || base_.gguf() != nullptr) {
      miss(full);
      return false;
    }
    const bool tied = is_head(module) && name.ends_with(".weight") && tie_word_embeddings() != false;
    if (tied) {
      for (const auto& [other, embedding] : adapter_.weights.saved) {
        if (is_embedding_name(module_of_parameter(other)) && embedding.shape == saved.shape &&
            embedding.values == saved.values) {
          return false;
        }
      }
    }
    note(in_quotes(full) + " is new in the checkpoint");
    if (tied && embedding_of(saved.shape)) {
      note("set tie_word_embeddings to false in config.json, or " + in_quotes(full) + " is not used");
    }
    return true;
  }

  const Checkpoint& base_;
  const AdapterFile& adapter_;
  const MergeOptions& options_;
  Orientation orientation_;
  nlohmann::json config_;
  std::map<std::string, Update> updates_;                      // by tensor
  std::map<std::string, const ModuleWeights<float>*> biases_;  // with a lora_bias, by tensor
  Changes changes_;
  std::string missing_;
  std::vector<std::string> notes_;
  std::map<std::string, RoundingError> errors_;
};

}  // namespace lora::tools
