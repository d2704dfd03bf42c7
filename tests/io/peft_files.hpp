// SPDX-License-Identifier: MIT
// What the tests of PEFT's folders share: the golden ones, and small ones made by hand.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/files.hpp"
#include "lora/core/little_endian.hpp"
#include "lora/core/types.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/safetensors_writer.hpp"

namespace lora::testing {

inline constexpr std::array<const char*, 7> golden_adapters{
    "adapter_qv",     "adapter_regex",       "adapter_pattern",   "adapter_exclude",
    "adapter_layers", "adapter_dora_rslora", "adapter_gpt2_style"};

[[nodiscard]] inline std::filesystem::path golden_adapter(const std::string& name) {
  return std::filesystem::path(LORA_GOLDEN_DIR) / name;
}

[[nodiscard]] inline std::string text_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(stream), {}};
}

[[nodiscard]] inline nlohmann::json json_of(const std::filesystem::path& path) {
  return nlohmann::json::parse(text_of(path));
}

/// The header of a safetensors file without __metadata__, read without the library's reader.
[[nodiscard]] inline nlohmann::json raw_header(const std::filesystem::path& path) {
  const std::string file = text_of(path);
  const auto length = load_little_endian<std::uint64_t>(file.data());
  nlohmann::json header = nlohmann::json::parse(file.substr(sizeof(length), static_cast<std::size_t>(length)));
  header.erase("__metadata__");
  return header;
}

/// Writes an adapter_config.json and an adapter_model.safetensors of zeros.
class HandmadeAdapter {
 public:
  explicit HandmadeAdapter(nlohmann::json config = {}) : config_(std::move(config)) {
    if (!config_.contains("peft_type")) config_["peft_type"] = "LORA";
    if (!config_.contains("r")) config_["r"] = 2;
    if (!config_.contains("target_modules")) config_["target_modules"] = {"q"};
  }

  HandmadeAdapter& add(const std::string& name, std::vector<Index> shape, Dtype dtype = Dtype::F32) {
    tensors_[name] = {std::move(shape), dtype};
    return *this;
  }

  void write(const std::filesystem::path& folder) const {
    std::filesystem::create_directories(folder);
    write_file(folder / "adapter_config.json", config_.dump());
    SafetensorsWriter writer;
    for (const auto& [name, tensor] : tensors_) {
      std::size_t bytes = lora::bits_of(tensor.second) / 8;
      for (const Index extent : tensor.first) bytes *= static_cast<std::size_t>(extent);
      writer.add(name, tensor.second, tensor.first, std::vector<std::byte>(bytes));
    }
    writer.write(folder / "adapter_model.safetensors");
  }

 private:
  nlohmann::json config_;
  std::map<std::string, std::pair<std::vector<Index>, Dtype>> tensors_;
};

}  // namespace lora::testing
