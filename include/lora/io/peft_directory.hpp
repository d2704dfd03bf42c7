// SPDX-License-Identifier: MIT
// Reads the folders that PEFT's save_pretrained writes: adapter_config.json beside adapter_model.safetensors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/file_descriptor.hpp"
#include "lora/io/peft_config.hpp"
#include "lora/io/peft_tensors.hpp"
#include "lora/io/safetensors_reader.hpp"
#include "lora/io/text.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/model_config.hpp"

namespace lora {

/// The configuration's file in a folder of an adapter.
inline constexpr std::string_view peft_config_file = "adapter_config.json";
/// The tensors' file in a folder of an adapter.
inline constexpr std::string_view peft_tensors_file = "adapter_model.safetensors";

/// One adapter of a folder. A value.
template <RealScalar Scalar>
struct PeftAdapter {
  LoraModelConfig config;             ///< the contents of adapter_config.json
  AdapterWeights<Scalar> weights;     ///< the contents of adapter_model.safetensors
  std::vector<std::string> warnings;  ///< from reading; ignored when writing
};

/// Options of read_peft_directory. A plain aggregate.
struct PeftReadOptions {
  bool strict = true;               ///< refuse what does not fit; otherwise leave it out, each with a warning
  std::string adapter = "default";  ///< which of several adapters; see list_peft_adapters
};

namespace detail {

inline constexpr std::string_view read_peft = "read_peft_directory";

/// One line per problem; only the first fifty are listed.
[[nodiscard]] inline std::string problems_text(const std::vector<std::string>& problems) {
  constexpr std::size_t told = 50;
  std::string text = std::to_string(problems.size()) + (problems.size() == 1 ? " problem:" : " problems:");
  for (std::size_t i = 0; i < std::min(told, problems.size()); ++i) text.append("\n  ").append(problems[i]);
  if (problems.size() > told) text.append("\n  and ").append(std::to_string(problems.size() - told)).append(" more");
  return text;
}

[[nodiscard]] inline SafetensorsFile open_peft_tensors(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / peft_tensors_file;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored) && std::filesystem::exists(folder / "adapter_model.bin", ignored)) {
    throw IoError(read_peft, path_text(folder), "adapter_model.safetensors",
                  "adapter_model.bin alone, a pickle, which is not read");
  }
  return SafetensorsFile::open(path);
}

/// A matcher for the tensors of a file. The file itself names the modules, so the options that choose targets are
/// cleared; a pattern that only Python supports does no harm there.
[[nodiscard]] inline ModuleMatcher matcher_of_tensors(LoraModelConfig config, std::string_view operation) {
  config.target_modules = {};
  config.exclude_modules = {};
  config.layers_to_transform.clear();
  config.layers_pattern.clear();
  return ModuleMatcher(config, operation);
}

/// Modules the configuration does not target. std::nullopt if its patterns are not supported regular expressions.
template <RealScalar Scalar>
[[nodiscard]] std::optional<std::vector<std::string>> untargeted_modules(const LoraModelConfig& config,
                                                                         const AdapterWeights<Scalar>& weights) {
  std::vector<std::string> untargeted;
  try {
    const ModuleMatcher matcher(config);
    for (const auto& [name, module] : weights.modules) {
      if (!matcher.targets(name, module.kind == ModuleKind::linear)) untargeted.push_back(name);
    }
  } catch (const ConfigError&) {
    return std::nullopt;
  }
  return untargeted;
}

/// @throws FormatError for a convolution with groups whose A sees the channels of other groups
template <RealScalar Scalar>
[[nodiscard]] ModuleWeights<Scalar> peft_module_weights(const PeftModule& module,
                                                        const std::vector<TensorView>& tensors) {
  const TensorView& A = tensors[module.A];
  const TensorView& B = tensors[module.B];
  ModuleWeights<Scalar> weights;
  weights.kind = module.kind;
  weights.A = A.matrix<Scalar>(A.shape[0]);
  weights.B = B.matrix<Scalar>(B.shape[0]);
  if (module.lora_bias) weights.lora_bias = tensors[*module.lora_bias].matrix<Scalar>(1);
  if (module.magnitude) weights.magnitude = tensors[*module.magnitude].matrix<Scalar>(1);
  if (A.shape.size() > 2) weights.kernel_size.assign(A.shape.begin() + 2, A.shape.end());
  if (const Index groups = peft_groups(weights); groups > 1) {
    weights.A = narrow_groups(weights.A, groups);
    if (weights.A.size() == 0) {
      throw FormatError(read_peft, tensor_argument(A.file, A.name),
                        "zeros for the channels of other groups, as in this library's convolutions", "other values");
    }
  }
  return weights;
}

template <RealScalar Scalar>
[[nodiscard]] AdapterWeights<Scalar> peft_state(const PeftInventory& inventory, const ModuleMatcher& matcher,
                                                const std::vector<TensorView>& tensors) {
  AdapterWeights<Scalar> weights;
  for (const auto& [name, module] : inventory.modules) {
    auto& loaded = weights.modules.emplace(name, peft_module_weights<Scalar>(module, tensors)).first->second;
    const LoraConfig config = matcher.config_for(name);
    loaded.scaling = config.scaling();
    if (module.kind == ModuleKind::linear) loaded.qalora_group_size = config.group_size();
  }
  for (const auto& [name, i] : inventory.saved) {
    SavedTensor<Scalar> saved{tensors[i].shape, std::vector<Scalar>(static_cast<std::size_t>(tensors[i].size()))};
    tensors[i].copy_to(std::span<Scalar>(saved.values));
    weights.saved.emplace(name, std::move(saved));
  }
  return weights;
}

template <RealScalar Scalar>
void warn_of_targets(PeftAdapter<Scalar>& adapter) {
  const auto untargeted = untargeted_modules(adapter.config, adapter.weights);
  if (!untargeted) {
    adapter.warnings.emplace_back("target_modules or exclude_modules: a pattern that is no regular expression here");
    return;
  }
  for (const std::string& module : *untargeted) {
    adapter.warnings.push_back("module " + in_quotes(module) + " is in the file, but not among target_modules");
  }
}

}  // namespace detail

/// Where an adapter is: `directory` itself for "default", and its subfolder `name` otherwise, as PEFT saves several
/// adapters.
/// @throws ConfigError for a name that cannot be a folder in `directory`
[[nodiscard]] inline std::filesystem::path peft_adapter_path(const std::filesystem::path& directory,
                                                             const std::string& name) {
  if (name == "default") return directory;
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    throw ConfigError("peft_adapter_path", "adapter", "the name of a folder", in_quotes(name));
  }
  return directory / name;
}

/// Names of the adapters in a folder: "default" if it holds an adapter itself, then its subfolders that do, ascending.
/// @throws IoError when the folder cannot be read
[[nodiscard]] inline std::vector<std::string> list_peft_adapters(const std::filesystem::path& directory) {
  const auto holds_adapter = [](const std::filesystem::path& folder) {
    std::error_code ignored;
    return std::filesystem::is_regular_file(folder / peft_config_file, ignored);
  };
  std::error_code error;
  std::vector<std::string> names;
  std::filesystem::directory_iterator entry(directory, error);
  for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().native();
    if (name != "default" && holds_adapter(entry->path())) names.push_back(name);
  }
  if (error) throw_io_error("list_peft_adapters", directory, "a readable folder", error.value());
  std::sort(names.begin(), names.end());
  if (holds_adapter(directory)) names.insert(names.begin(), "default");
  return names;
}

/// Reads one adapter: checks names, shapes and ranks against the configuration, then converts all values to Scalar.
/// Widening is exact; F64 to float rounds. Each module's scaling follows from the configuration and its patterns.
/// Modules that target_modules does not name are kept, with a warning; unknown keys give a warning too. In PEFT the A
/// of a convolution with groups sees all channels; one that uses other channels than its group's, as training in PEFT
/// gives, is refused. PEFT obeys use_qalora over GPTQ weights alone and ignores it elsewhere; here A is always taken as
/// rank x in_features / group, so a model refuses an adapter that PEFT trained without grouping.
/// @throws IoError, SafetensorsError and FormatError for files that are missing, damaged or Git LFS pointers, and, when
/// strict, for tensors that are missing, extra or misshapen, listing all of them; ConfigError like parse_peft_config
/// and for patterns that are not regular expressions; std::bad_alloc. Never allocates more than the file's bytes
/// justify.
template <RealScalar Scalar>
[[nodiscard]] PeftAdapter<Scalar> read_peft_directory(const std::filesystem::path& directory,
                                                      const PeftReadOptions& options = {}) {
  const std::filesystem::path folder = peft_adapter_path(directory, options.adapter);
  PeftConfig read = read_peft_config(folder / peft_config_file);
  const SafetensorsFile file = detail::open_peft_tensors(folder);
  const ModuleMatcher matcher = detail::matcher_of_tensors(read.config, detail::read_peft);

  std::vector<PeftTensor> listed;
  std::vector<TensorView> views;
  for (const std::string_view name : file.names()) {
    views.push_back(file.tensor(name));
    listed.push_back({std::string(name), views.back().dtype, views.back().shape});
  }
  PeftInventory inventory = take_peft_inventory(read.config, matcher, listed);
  if (inventory.modules.empty()) inventory.problems.emplace_back("there is no whole module of LoRA in the file");
  if (options.strict && !inventory.problems.empty()) {
    throw FormatError(detail::read_peft, file.label(), "the tensors that adapter_config.json describes",
                      detail::problems_text(inventory.problems));
  }
  PeftAdapter<Scalar> adapter{std::move(read.config), detail::peft_state<Scalar>(inventory, matcher, views),
                              std::move(read.warnings)};
  for (std::string& problem : inventory.problems) adapter.warnings.push_back(std::move(problem));
  detail::warn_of_targets(adapter);
  return adapter;
}

}  // namespace lora
