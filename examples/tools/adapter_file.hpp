// Reads an adapter from a PEFT directory, a GGUF file, or a safetensors file with pairs of factors.
#pragma once

#include <array>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/gguf.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/safetensors.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/model_config.hpp"

namespace lora::tools {

/// An adapter and where it comes from.
struct AdapterFile {
  std::string format;      ///< "PEFT", "GGUF" or "pairs"
  LoraModelConfig config;  ///< PEFT's; otherwise only rank and alpha
  AdapterWeights<float> weights;
  std::vector<std::string> warnings;
  std::uintmax_t bytes = 0;
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

}  // namespace detail

/// Whether a safetensors file holds pairs of low-rank factors.
[[nodiscard]] inline bool holds_pairs(const SafetensorsFile& file) {
  for (const auto name : file.names()) {
    const auto pair = detail::module_and_partner(name);
    if (pair && file.contains(pair->second)) return true;
  }
  return false;
}

/// Reads pairs of factors. A tensor "<module>.alpha" gives a module's alpha; without it the scaling is 1.
/// @throws FormatError for a pair whose shapes do not match, or if there is no pair
[[nodiscard]] inline AdapterFile read_pairs(const SafetensorsFile& file) {
  AdapterFile adapter;
  adapter.format = "pairs";
  for (const auto name : file.names()) {
    const auto pair = detail::module_and_partner(name);
    if (!pair || !file.contains(pair->second)) continue;
    const auto down = file.tensor(name);
    ModuleWeights<float> module;
    module.A = detail::rows_of(down);
    module.B = detail::rows_of(file.tensor(pair->second));
    if (module.A.rows() != module.B.cols()) {
      throw FormatError("read adapter", std::string(name),
                        std::to_string(module.B.cols()) + " rows, as the other factor",
                        std::to_string(module.A.rows()));
    }
    if (down.shape.size() > 2) {
      module.kernel_size.assign(down.shape.begin() + 2, down.shape.end());
      module.kind =
          static_cast<ModuleKind>(static_cast<int>(ModuleKind::conv1d) + static_cast<int>(down.shape.size()) - 3);
    }
    const std::string alpha = pair->first + ".alpha";
    if (file.contains(alpha)) {
      module.scaling = file.matrix<double>(alpha)(0, 0) / static_cast<double>(module.rank());
    }
    adapter.config.lora.rank = module.rank();
    adapter.config.lora.alpha = module.scaling * static_cast<double>(module.rank());
    adapter.weights.modules.emplace(pair->first, std::move(module));
  }
  if (adapter.weights.modules.empty())
    throw FormatError("read adapter", file.label(), "pairs of low-rank factors", "none");
  return adapter;
}

/// @throws IoError, FormatError, ConfigError
[[nodiscard]] inline AdapterFile read_adapter(const std::filesystem::path& path, const std::string& name = "default") {
  AdapterFile adapter;
  if (std::filesystem::is_directory(path)) {
    auto read = read_peft_directory<float>(path, {.strict = true, .adapter = name});
    adapter = {"PEFT", std::move(read.config), std::move(read.weights), std::move(read.warnings), 0};
    adapter.bytes = std::filesystem::file_size(peft_adapter_path(path, name) / peft_tensors_file);
    return adapter;
  }
  if (path.extension() == ".gguf") {
    auto read = read_gguf_adapter(path);
    adapter.format = "GGUF";
    adapter.weights = std::move(read.weights);
  } else {
    adapter = read_pairs(SafetensorsFile::open(path));
  }
  adapter.bytes = std::filesystem::file_size(path);
  return adapter;
}

}  // namespace lora::tools
