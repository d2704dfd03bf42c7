// SPDX-License-Identifier: MIT
// Reads an adapter from a PEFT directory, a GGUF file, or a safetensors file with pairs of factors.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "lora/core/error.hpp"
#include "lora/core/number_text.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/gguf.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/peft_tensors.hpp"
#include "lora/io/safetensors.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/described_config.hpp"
#include "lora/model/model_config.hpp"

namespace lora::tools {

/// An adapter and where it comes from.
struct AdapterFile {
  std::string format;      ///< "PEFT", "GGUF" or "pairs"
  LoraModelConfig config;  ///< PEFT's; otherwise only rank and alpha
  AdapterWeights<float> weights;
  std::vector<std::string> warnings;
  std::uintmax_t bytes = 0;
  std::string architecture{};  ///< of the base model, by llama.cpp's name; empty if the file does not say it
  GgufMetadata metadata{};     ///< of a GGUF file
};

namespace detail {

/// How files not written by PEFT name the two factors of a module.
inline constexpr std::array<std::pair<std::string_view, std::string_view>, 4> pair_suffixes = {{
    {".lora_A.weight", ".lora_B.weight"},
    {".lora_down.weight", ".lora_up.weight"},
    {".lora.down.weight", ".lora.up.weight"},
    {":down", ":up"},
}};

[[nodiscard]] inline Matrix<float> rows_of(const TensorView& tensor) {
  const Index rows = tensor.shape.empty() ? 1 : tensor.shape.front();
  Matrix<float> values(rows, rows == 0 ? 0 : tensor.size() / rows);
  tensor.copy_to(std::span<float>(values.data(), static_cast<std::size_t>(values.size())));
  return values;
}

[[nodiscard]] inline std::optional<std::pair<std::string, std::string>> module_and_partner(std::string_view name) {
  for (const auto& [down, up] : pair_suffixes) {
    if (!name.ends_with(down)) continue;
    const std::string module(name.substr(0, name.size() - down.size()));
    return std::pair(module, module + std::string(up));
  }
  return std::nullopt;
}

template <StoredScalar T>
[[nodiscard]] double number_of(const TensorView& tensor) {
  T value{};
  tensor.copy_to(std::span<T>(&value, 1));
  return static_cast<double>(value);
}

[[nodiscard]] inline double scaling_from_alpha(const SafetensorsFile& file, const std::string& alpha, Index rank) {
  const TensorView tensor = file.tensor(alpha);
  if (tensor.size() != 1) {
    throw FormatError("read adapter", file.label() + ", " + in_quotes(alpha), "one number", shape_text(tensor.shape));
  }
  const double value = tensor.dtype == Dtype::I64   ? number_of<std::int64_t>(tensor)
                       : tensor.dtype == Dtype::I32 ? number_of<std::int32_t>(tensor)
                                                    : number_of<double>(tensor);
  return value / static_cast<double>(rank);
}

/// Tensors beside a pair that change what it means: the core of a convolution's decomposition, magnitudes of DoRA, a
/// bias of B.
inline constexpr std::array<std::string_view, 6> unread_parts = {
    ".lora_mid.weight", ".lora_mid", ".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight",
    ".lora_B.bias"};

inline void refuse_unread_parts(const SafetensorsFile& file, const std::string& module) {
  for (const std::string_view part : unread_parts) {
    const std::string name = module + std::string(part);
    if (!file.contains(name)) continue;
    throw FormatError("read adapter", file.label() + ", module " + in_quotes(module),
                      "two factors and an alpha, the whole of its update", in_quotes(name));
  }
}

[[nodiscard]] inline ModuleWeights<float> read_pair(const SafetensorsFile& file, const TensorView& down,
                                                    const TensorView& up) {
  ModuleWeights<float> module;
  module.A = rows_of(down);
  module.B = rows_of(up);
  const std::string argument = file.label() + ", " + in_quotes(down.name);
  if (module.A.size() == 0 || module.B.size() == 0) {
    throw FormatError("read adapter", argument, "factors with elements",
                      shape_text(down.shape) + " and " + shape_text(up.shape));
  }
  if (module.A.rows() != module.B.cols()) {
    throw FormatError("read adapter", argument, std::to_string(module.B.cols()) + " rows, as the other factor",
                      std::to_string(module.A.rows()));
  }
  const auto dimensions = static_cast<int>(down.shape.size()) - 2;
  if (dimensions > 3) {
    throw FormatError("read adapter", argument, "a factor of at most 5 dimensions", shape_text(down.shape));
  }
  if (dimensions > 0) {
    module.kernel_size.assign(down.shape.begin() + 2, down.shape.end());
    module.kind = static_cast<ModuleKind>(static_cast<int>(ModuleKind::conv1d) + dimensions - 1);
  }
  return module;
}

/// Reads the pairs of a file.
class PairReader {
 public:
  explicit PairReader(const SafetensorsFile& file) : file_(file) { adapter_.format = "pairs"; }

  [[nodiscard]] AdapterFile read() && {
    for (const auto name : file_.names()) {
      const auto pair = module_and_partner(name);
      if (pair && file_.contains(pair->second)) add(std::string(name), pair->first, pair->second);
    }
    if (adapter_.weights.modules.empty()) {
      throw FormatError("read adapter", file_.label(), "pairs of low-rank factors", "none");
    }
    warn_of_the_rest();
    return std::move(adapter_);
  }

 private:
  void add(const std::string& down, const std::string& prefixed, const std::string& up) {
    refuse_unread_parts(file_, prefixed);
    ModuleWeights<float> module = read_pair(file_, file_.tensor(down), file_.tensor(up));
    const std::string alpha = prefixed + ".alpha";
    const bool from_peft = prefixed.starts_with(lora::detail::peft_prefix);
    const bool scaled = file_.contains(alpha);
    if (scaled) module.scaling = scaling_from_alpha(file_, alpha, module.rank());
    lacks_scaling_ = lacks_scaling_ || (from_peft && !scaled);
    adapter_.config.lora.rank = module.rank();
    adapter_.config.lora.alpha = module.scaling * static_cast<double>(module.rank());
    const std::string name = prefixed.substr(from_peft ? lora::detail::peft_prefix.size() : 0);
    if (!adapter_.weights.modules.emplace(name, std::move(module)).second) {
      throw FormatError("read adapter", file_.label(), "one pair of factors for a module", in_quotes(name) + " twice");
    }
    used_.insert({down, up, alpha});
  }

  void warn_of_the_rest() {
    if (lacks_scaling_) {
      adapter_.warnings.emplace_back("no adapter_config.json beside the file says the scaling: it is taken as 1");
    }
    for (const auto name : file_.names()) {
      if (used_.contains(name)) continue;
      adapter_.warnings.push_back("tensor " + in_quotes(name) + " is no part of a pair: left out");
    }
  }

  const SafetensorsFile& file_;
  AdapterFile adapter_;
  std::set<std::string, std::less<>> used_;
  bool lacks_scaling_ = false;
};

}  // namespace detail

/// Whether a safetensors file holds pairs of low-rank factors.
[[nodiscard]] inline bool holds_pairs(const SafetensorsFile& file) {
  for (const auto name : file.names()) {
    const auto pair = detail::module_and_partner(name);
    if (pair && file.contains(pair->second)) return true;
  }
  return false;
}

/// Reads pairs of factors. A tensor "<module>.alpha" gives a module's alpha; without it the scaling is 1. Every other
/// tensor is left out with a warning. Names lose the prefix that PEFT writes.
/// @throws FormatError for a pair whose shapes do not match or that is not the whole of a module's update, an alpha
/// that is not one number, or if there is no pair
[[nodiscard]] inline AdapterFile read_pairs(const SafetensorsFile& file) { return detail::PairReader(file).read(); }

/// The folder that is read in place of PEFT's file of tensors, which says nothing without the configuration beside it;
/// `path` itself for every other file.
[[nodiscard]] inline std::filesystem::path with_its_config(const std::filesystem::path& path) {
  std::error_code ignored;
  if (path.filename() != peft_tensors_file || std::filesystem::is_directory(path, ignored)) return path;
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const bool there = std::filesystem::exists(std::filesystem::symlink_status(folder / peft_config_file, ignored));
  return there ? folder : path;
}

/// Whether `file` is read as an adapter rather than a checkpoint. @throws IoError, FormatError
[[nodiscard]] inline bool is_adapter(const std::filesystem::path& file) {
  const std::filesystem::path path = with_its_config(file);
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    const auto is_there = [&](std::string_view name) {
      return std::filesystem::exists(std::filesystem::symlink_status(path / name, ignored));
    };
    if (is_there(peft_config_file)) return true;
    return !is_there("model.safetensors") && !is_there("model.safetensors.index.json") &&
           !list_peft_adapters(path).empty();
  }
  if (is_gguf(path)) return GgufFile(path).is_adapter();
  return path.extension() != ".json" && holds_pairs(SafetensorsFile::open(path));
}

/// `gguf` says how to rename and reorder the modules of a GGUF file.
/// @throws IoError, FormatError, ConfigError
[[nodiscard]] inline AdapterFile read_adapter(const std::filesystem::path& file, const std::string& name = "default",
                                              const GgufOptions& gguf = {}) {
  const std::filesystem::path path = name == "default" ? with_its_config(file) : file;
  AdapterFile adapter;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    const auto folder = peft_adapter_path(path, name);
    if (!std::filesystem::exists(std::filesystem::symlink_status(folder / peft_config_file, ignored))) {
      std::string there;
      for (const auto& other : list_peft_adapters(path))
        there.append(there.empty() ? "" : ", ").append(in_quotes(other));
      throw ConfigError("read adapter", in_quotes(path.native(), path.native().size()),
                        "an adapter called " + in_quotes(name), there.empty() ? "no adapter" : "only " + there);
    }
    auto read = read_peft_directory<float>(path, {.strict = true, .adapter = name});
    adapter = {"PEFT", std::move(read.config), std::move(read.weights), std::move(read.warnings), 0};
    adapter.bytes = std::filesystem::file_size(folder / peft_tensors_file, ignored);
    return adapter;
  }
  if (name != "default") {
    throw ConfigError("read adapter", "--adapter", "a directory of PEFT with several adapters", "a file");
  }
  if (is_gguf(path)) {
    auto read = read_gguf_adapter(path, gguf);
    if (read.weights.modules.empty()) {
      throw FormatError("read adapter", in_quotes(path.native(), path.native().size()), "a module with factors",
                        "none");
    }
    adapter.format = "GGUF";
    adapter.weights = std::move(read.weights);
    adapter.architecture = std::move(read.architecture);
    adapter.metadata = std::move(read.metadata);
  } else {
    adapter = read_pairs(SafetensorsFile::open(path));
  }
  adapter.bytes = std::filesystem::file_size(path, ignored);
  return adapter;
}

namespace detail {

template <class Values>
void require_finite_rows(const std::string& what, const Values& values) {
  for (Index row = 0; row < values.rows(); ++row) {
    if (values.row(row).allFinite()) continue;
    throw StateError("check adapter", what + ", row " + std::to_string(row), "finite numbers", "an infinity or NaN");
  }
}

}  // namespace detail

/// B of the product B A over the whole weight. A convolution with groups has only the columns of an output's own group
/// in B; the others are zero.
[[nodiscard]] inline Matrix<float> joined_groups(const ModuleWeights<float>& module) {
  const Index groups = peft_groups(module);
  if (groups == 1) return module.B;
  Matrix<float> joined = Matrix<float>::Zero(module.B.rows(), module.rank());
  const Index outputs = module.B.rows() / groups;
  for (Index g = 0; g < groups; ++g) {
    joined.block(g * outputs, g * module.B.cols(), outputs, module.B.cols()) =
        module.B.middleRows(g * outputs, outputs);
  }
  return joined;
}

/// @throws StateError naming the first tensor and row with an infinity or NaN
inline void require_finite(const AdapterWeights<float>& weights) {
  for (const auto& [name, module] : weights.modules) {
    const std::string what = "module " + in_quotes(name) + ", ";
    detail::require_finite_rows(what + "A", module.A);
    detail::require_finite_rows(what + "B", module.B);
    detail::require_finite_rows(what + "lora_bias", module.lora_bias);
    detail::require_finite_rows(what + "magnitude", module.magnitude);
    if (!std::isfinite(module.scaling)) {
      throw StateError("check adapter", what + "scaling", "a finite number", lora::detail::number_text(module.scaling));
    }
  }
  for (const auto& [name, saved] : weights.saved) {
    const Index rows = saved.shape.empty() ? 1 : saved.shape.front();
    const Index cols = rows == 0 ? 0 : static_cast<Index>(saved.values.size()) / rows;
    detail::require_finite_rows("tensor " + in_quotes(name),
                                Eigen::Map<const Matrix<float>>(saved.values.data(), rows, cols));
  }
}

/// For commands that see no base weight: PiSSA and OLoRA compute their start from it, and it must be taken out again.
/// @throws ConfigError
inline void require_no_start(const AdapterFile& adapter, std::string_view operation, const std::string& path) {
  const InitLoraWeights init = adapter.config.lora.init_lora_weights;
  if (!takes_from_weight(init)) return;
  throw ConfigError(
      operation, in_quotes(path, path.size()),
      "an adapter whose delta is s B A (PEFT: save_pretrained with path_initial_model_for_weight_conversion)",
      init == InitLoraWeights::pissa ? "one with init_lora_weights pissa, whose start is a part of the base weight"
                                     : "one with init_lora_weights olora, whose start is a part of the base weight");
}

/// For an adapter of llama.cpp, which ignores whole tensors in it: leaves them out, each with a warning.
inline void leave_out_norms(AdapterFile& adapter) {
  for (const auto& [name, tensor] : adapter.weights.saved) {
    adapter.warnings.push_back("tensor " + in_quotes(name) + ", which llama.cpp does not apply, is left out");
  }
  adapter.weights.saved.clear();
}

/// described_config for `weights` that were computed here, whose start is the plain one.
[[nodiscard]] inline LoraModelConfig config_of(LoraModelConfig config, const AdapterWeights<float>& weights) {
  config = described_config(std::move(config), weights);
  config.lora.init_lora_weights = InitLoraWeights::kaiming_uniform;
  config.lora.pissa_niter = 0;
  return config;
}

/// Whether an entry of a folder is part of an adapter in it.
[[nodiscard]] inline bool belongs_to_adapter(std::string_view name) {
  return name == peft_config_file || name == peft_tensors_file || name == "adapter_model.bin";
}

}  // namespace lora::tools
