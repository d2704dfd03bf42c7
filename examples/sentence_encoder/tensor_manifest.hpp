// SPDX-License-Identifier: MIT
// The tensors of a TensorFlow.js model: model.json with names, types and shapes, and the shards with their bytes.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/json_text.hpp"
#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/text.hpp"
#include "sentence_encoder/fnv1a.hpp"

namespace examples::sentence_encoder {

using lora::Index;

/// The tensors of a model folder, read whole. Kinds: float32 and int32, not quantised.
class TensorManifest {
 public:
  /// @throws lora::IoError, lora::FormatError
  explicit TensorManifest(std::filesystem::path folder) : folder_(std::move(folder)) {
    static_assert(std::endian::native == std::endian::little, "the shards are little-endian");
    const lora::MappedFile file(folder_ / "model.json");
    const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    hash_ = fnv1a(text);
    const auto model = parse_json(text);
    const auto manifest = model.is_object() ? model.find("weightsManifest") : model.end();
    if (manifest == model.end() || !manifest->is_array()) fail("model.json", "an array weightsManifest", "none");
    for (const auto& group : *manifest) read_group(group);
  }

  /// FNV-1a, 64 bits, of model.json and of the shards that it names.
  [[nodiscard]] std::uint64_t hash() const noexcept { return hash_; }

  /// Extents of a tensor. @throws lora::FormatError when there is none of that name
  [[nodiscard]] const std::vector<Index>& shape(const std::string& name) const { return find(name).shape; }

  /// A float32 tensor as rows x cols, in the order it is stored; leading extents of 1 are left out, and a vector is one
  /// row. -1 takes any extent. @throws lora::FormatError when it is missing or has another type or shape
  [[nodiscard]] lora::Matrix<float> matrix(const std::string& name, Index rows, Index cols) const {
    const Tensor& tensor = find(name);
    const auto& shape = tensor.shape;
    const auto leading = std::find_if(shape.begin(), shape.end(), [](Index extent) { return extent != 1; });
    const auto kept = shape.end() - std::min<std::ptrdiff_t>(shape.end() - leading, 2);
    std::vector<Index> extents(kept, shape.end());
    extents.insert(extents.begin(), 2 - extents.size(), 1);
    const auto fits = [](Index extent, Index wanted) { return wanted < 0 || extent == wanted; };
    if (!tensor.is_float || shape.end() - leading > 2 || !fits(extents[0], rows) || !fits(extents[1], cols)) {
      const auto wanted = [](Index extent) { return extent < 0 ? std::string("any") : std::to_string(extent); };
      fail(name, "float32 of " + wanted(rows) + " x " + wanted(cols), description(tensor));
    }
    lora::Matrix<float> values(extents[0], extents[1]);
    std::copy_n(tensor.bytes.data(), tensor.bytes.size(), reinterpret_cast<std::byte*>(values.data()));
    return values;
  }

  /// An int32 tensor without extents. @throws lora::FormatError
  [[nodiscard]] Index integer(const std::string& name) const {
    const Tensor& tensor = find(name);
    if (tensor.is_float || tensor.bytes.size() != sizeof(std::int32_t)) fail(name, "one int32", description(tensor));
    std::int32_t value = 0;
    std::memcpy(&value, tensor.bytes.data(), sizeof(value));
    return value;
  }

 private:
  struct Tensor {
    std::vector<Index> shape;
    bool is_float = true;
    std::vector<std::byte> bytes;
  };

  // Of a tensor, or of all; larger ones are a sign of a broken file.
  static constexpr std::uint64_t most_bytes = std::uint64_t{1} << 32U;

  [[noreturn]] void fail(std::string_view argument, std::string_view expected, std::string_view got) const {
    std::string where = lora::in_quotes(folder_.native());
    where.append(": ").append(argument);
    throw lora::FormatError("TensorManifest", where, expected, got);
  }

  [[nodiscard]] const Tensor& find(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail(name, "a tensor of this name", "none");
    return found->second;
  }

  static std::string description(const Tensor& tensor) {
    std::string text = tensor.is_float ? "float32" : "int32";
    text += " of shape [";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      text.append(i == 0 ? "" : ", ").append(std::to_string(tensor.shape[i]));
    }
    return text += "]";
  }

  void read_group(const nlohmann::json& group) {
    const bool complete = group.is_object() && group.contains("paths") && group["paths"].is_array() &&
                          group.contains("weights") && group["weights"].is_array();
    if (!complete) fail("weightsManifest", "groups of paths and weights", lora::in_quotes(group.dump()));
    const std::vector<std::byte> bytes = read_shards(group["paths"]);
    std::size_t used = 0;
    for (const auto& entry : group["weights"]) {
      auto [name, tensor, size] = read_entry(entry);
      if (size > bytes.size() - used) {
        fail(name, std::to_string(size) + " bytes in the shards", std::to_string(bytes.size() - used));
      }
      const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(used);
      tensor.bytes.assign(first, first + static_cast<std::ptrdiff_t>(size));
      used += size;
      if (!tensors_.emplace(name, std::move(tensor)).second) fail(name, "one tensor of this name", "two");
    }
    if (used != bytes.size()) fail("shards", std::to_string(used) + " bytes", std::to_string(bytes.size()));
  }

  [[nodiscard]] std::vector<std::byte> read_shards(const nlohmann::json& paths) {
    std::vector<std::byte> bytes;
    for (const auto& path : paths) {
      const std::string name = path.is_string() ? path.get<std::string>() : std::string();
      if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
        fail("paths", "names of files in the folder", lora::in_quotes(path.dump()));
      }
      const lora::MappedFile shard(folder_ / name);
      bytes.insert(bytes.end(), shard.bytes().begin(), shard.bytes().end());
    }
    hash_ = fnv1a({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, hash_);
    return bytes;
  }

  struct Entry {
    std::string name;
    Tensor tensor;
    std::size_t bytes;
  };

  [[nodiscard]] Entry read_entry(const nlohmann::json& entry) const {
    const auto is_text = [&](const char* key) { return entry.contains(key) && entry[key].is_string(); };
    if (!entry.is_object() || !is_text("name") || !is_text("dtype") || !entry.contains("shape")) {
      fail("weights", "entries of name, dtype and shape", lora::in_quotes(entry.dump()));
    }
    Entry result{entry["name"].get<std::string>(), {}, 4};
    const auto& type = entry["dtype"].get_ref<const std::string&>();
    if ((type != "float32" && type != "int32") || entry.contains("quantization")) {
      fail(result.name, "float32 or int32, not quantised", lora::in_quotes(entry.dump()));
    }
    result.tensor.is_float = type == "float32";
    if (!entry["shape"].is_array()) fail(result.name, "an array as shape", lora::in_quotes(entry["shape"].dump()));
    for (const auto& extent : entry["shape"]) {
      if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > most_bytes) {
        fail(result.name, "extents of at least 0", lora::in_quotes(entry["shape"].dump()));
      }
      const auto value = extent.get<std::uint64_t>();
      if (value > 0 && result.bytes > most_bytes / value) {
        fail(result.name, "at most 4 GiB", lora::in_quotes(entry["shape"].dump()));
      }
      result.bytes *= value;
      result.tensor.shape.push_back(static_cast<Index>(value));
    }
    return result;
  }

  std::filesystem::path folder_;
  std::uint64_t hash_ = 0;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace examples::sentence_encoder
