// A checkpoint: one safetensors file, or the shards that an index file names.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/safetensors.hpp"

namespace lora::tools {

/// One file of a checkpoint.
struct Shard {
  std::string name;  ///< of the file
  SafetensorsFile file;
};

/// Opens `path`: a safetensors file, an index (*.safetensors.index.json), or a folder that holds either under the names
/// of PEFT and transformers. Tensor data is read only when it is used.
class Checkpoint {
 public:
  /// @throws IoError, FormatError
  [[nodiscard]] static Checkpoint open(const std::filesystem::path& path) {
    if (!std::filesystem::is_directory(path)) return of_file(path);
    const std::vector<std::filesystem::path> candidates = {
        path / "model.safetensors.index.json", path / "model.safetensors", path / "adapter_model.safetensors"};
    for (const auto& candidate : candidates) {
      if (std::filesystem::exists(candidate)) return of_file(candidate);
    }
    throw IoError("open checkpoint", path.native(), "model.safetensors or its index in the folder", "neither");
  }

  [[nodiscard]] const std::vector<Shard>& shards() const noexcept { return shards_; }
  /// The index file's text; empty for one file.
  [[nodiscard]] const std::string& index() const noexcept { return index_; }
  [[nodiscard]] const std::string& index_name() const noexcept { return index_name_; }

  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const Shard& shard : shards_) {
      for (const auto name : shard.file.names()) names.emplace_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  [[nodiscard]] std::optional<TensorView> find(std::string_view name) const {
    for (const Shard& shard : shards_) {
      if (shard.file.contains(name)) return shard.file.tensor(name);
    }
    return std::nullopt;
  }
  /// Returns the memory of tensor data that has been read to the system.
  void release(const TensorView& tensor) const noexcept {
    for (const Shard& shard : shards_) {
      if (shard.file.label() == tensor.file) shard.file.release(tensor.bytes);
    }
  }
  [[nodiscard]] std::uintmax_t bytes() const {
    std::uintmax_t total = 0;
    for (const Shard& shard : shards_) {
      for (const auto name : shard.file.names()) total += shard.file.tensor(name).bytes.size();
    }
    return total;
  }

 private:
  static Checkpoint of_file(const std::filesystem::path& path) {
    Checkpoint checkpoint;
    if (path.extension() != ".json") {
      checkpoint.shards_.push_back({path.filename().string(), SafetensorsFile::open(path)});
      return checkpoint;
    }
    std::ifstream stream(path, std::ios::binary);
    checkpoint.index_.assign(std::istreambuf_iterator<char>(stream), {});
    checkpoint.index_name_ = path.filename().string();
    for (const std::string& name : shard_names(path, checkpoint.index_)) {
      checkpoint.shards_.push_back({name, SafetensorsFile::open(path.parent_path() / name)});
    }
    return checkpoint;
  }

  static std::set<std::string> shard_names(const std::filesystem::path& path, const std::string& text) {
    const auto json = nlohmann::json::parse(text, nullptr, false);
    const auto map = json.is_object() ? json.find("weight_map") : json.end();
    if (!json.is_object() || map == json.end() || !map->is_object()) {
      throw FormatError("open checkpoint", path.native(), "an object with weight_map", "something else");
    }
    std::set<std::string> names;
    for (const auto& [tensor, shard] : map->items()) {
      const std::string name = shard.is_string() ? shard.get<std::string>() : std::string();
      if (name.empty() || name.find('/') != std::string::npos || name == "..") {
        throw FormatError("open checkpoint", path.native(), "the name of a file beside the index", shard.dump());
      }
      names.insert(name);
    }
    if (names.empty()) throw FormatError("open checkpoint", path.native(), "at least one shard", "none");
    return names;
  }

  std::vector<Shard> shards_;
  std::string index_;
  std::string index_name_;
};

}  // namespace lora::tools
