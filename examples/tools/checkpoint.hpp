// SPDX-License-Identifier: MIT
// A checkpoint: one safetensors or GGUF file, or the shards that an index file names.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config_text.hpp"
#include "lora/core/error.hpp"
#include "lora/io/gguf_parser.hpp"
#include "lora/io/gguf_type.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/safetensors.hpp"
#include "output.hpp"

namespace lora::tools {

/// The text of a small file. @throws IoError for what is no regular file, FormatError for one of more than 256 MiB
[[nodiscard]] inline std::string read_text(const std::filesystem::path& path) {
  const MappedFile file(path);
  constexpr std::size_t limit = std::size_t{1} << 28;
  if (file.bytes().size() > limit) {
    throw FormatError("read", in_quotes(path.native()), "a text of at most " + std::to_string(limit) + " bytes",
                      std::to_string(file.bytes().size()) + " bytes");
  }
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

[[nodiscard]] inline bool is_gguf(const std::filesystem::path& path) { return path.extension() == ".gguf"; }

/// A GGUF file, mapped. Its tensors have their shapes in the order of safetensors: rows first.
struct GgufFile {
  explicit GgufFile(const std::filesystem::path& path)
      : label(in_quotes(path.native(), path.native().size())),
        mapping(path),
        contents(parse_gguf(mapping.bytes(), label)) {}

  /// A string in the metadata; empty if there is none.
  [[nodiscard]] std::string text(std::string_view key) const {
    const auto found = contents.metadata.find(key);
    const auto* value = found == contents.metadata.end() ? nullptr : std::get_if<std::string>(&found->second);
    return value == nullptr ? std::string() : *value;
  }
  /// A number in the metadata; 0 if there is none.
  [[nodiscard]] Index number(std::string_view key) const {
    const auto found = contents.metadata.find(key);
    if (found == contents.metadata.end()) return 0;
    if (const auto* value = std::get_if<std::uint32_t>(&found->second)) return static_cast<Index>(*value);
    const auto* value = std::get_if<std::uint16_t>(&found->second);
    return value == nullptr ? 0 : static_cast<Index>(*value);
  }
  [[nodiscard]] bool is_adapter() const { return text("general.type") == "adapter"; }

  std::string label;
  MappedFile mapping;
  GgufContents contents;
};

/// A tensor of a checkpoint. One in the blocks of a GGUF file has the dtype U8 and the shape of its elements, not of
/// its bytes.
struct StoredTensor : TensorView {
  std::optional<GgufType> blocks;

  [[nodiscard]] Index elements() const {
    Index count = 1;
    for (const Index extent : shape) count *= extent;
    return count;
  }
  /// "F16", "Q4_K".
  [[nodiscard]] std::string_view type_name() const { return blocks ? name_of(*blocks) : name_of(dtype); }
  /// Whether it is stored in the same way, of the same shape.
  [[nodiscard]] bool is_stored_like(const StoredTensor& other) const {
    return dtype == other.dtype && blocks == other.blocks && shape == other.shape;
  }
};

/// One file of a checkpoint.
class Shard {
 public:
  /// @throws IoError, FormatError
  explicit Shard(const std::filesystem::path& path) : name_(path.filename().string()) {
    if (is_gguf(path)) {
      gguf_ = std::make_shared<const GgufFile>(path);
      require_one_model();
      for (const GgufTensor& tensor : gguf_->contents.tensors) tensors_.push_back(view_of(tensor));
    } else {
      safetensors_ = SafetensorsFile::open(path);
      for (const auto name : safetensors_->names()) tensors_.push_back({safetensors_->tensor(name), std::nullopt});
    }
    std::sort(tensors_.begin(), tensors_.end(), by_name);
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const std::vector<StoredTensor>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] const StoredTensor* find(std::string_view name) const {
    const TensorView wanted{{}, name, {}, {}, {}};
    const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), wanted, by_name);
    return found != tensors_.end() && found->name == name ? &*found : nullptr;
  }
  void release(std::span<const std::byte> part) const noexcept {
    gguf_ ? gguf_->mapping.release(part) : safetensors_->release(part);
  }
  /// Of a safetensors file; otherwise null.
  [[nodiscard]] const SafetensorsFile* safetensors() const noexcept { return safetensors_ ? &*safetensors_ : nullptr; }
  /// Of a GGUF file; otherwise null.
  [[nodiscard]] const GgufFile* gguf() const noexcept { return gguf_.get(); }

 private:
  static bool by_name(const TensorView& a, const TensorView& b) { return a.name < b.name; }

  void require_one_model() const {
    if (gguf_->is_adapter()) throw FormatError("open checkpoint", gguf_->label, "a model", "an adapter");
    if (gguf_->number("split.count") > 1) {
      throw FormatError("open checkpoint", gguf_->label, "a whole model", "one of several files (split.count)");
    }
  }

  [[nodiscard]] StoredTensor view_of(const GgufTensor& tensor) const {
    std::size_t dimensions = tensor.extents.size();
    while (dimensions > 1 && tensor.extents[dimensions - 1] == 1) --dimensions;
    const auto dtype = dtype_of_type(tensor.type);
    StoredTensor view{{gguf_->label, tensor.name, dtype.value_or(Dtype::U8), {}, tensor.bytes}, std::nullopt};
    if (!dtype) view.blocks = tensor.type;
    for (std::size_t i = dimensions; i > 0; --i) view.shape.push_back(static_cast<Index>(tensor.extents[i - 1]));
    return view;
  }

  std::string name_;
  std::optional<SafetensorsFile> safetensors_;
  std::shared_ptr<const GgufFile> gguf_;
  std::vector<StoredTensor> tensors_;  // by ascending name
};

/// Whether a file in a folder is part of a checkpoint in it: the model, its index, or a shard that is called
/// "model-00001-of-00002.safetensors". A file of another name may be anything, such as a backup.
[[nodiscard]] inline bool belongs_to_checkpoint(std::string_view name) {
  if (name == "model.safetensors" || name == "model.safetensors.index.json") return true;
  constexpr std::string_view begin = "model-";
  constexpr std::string_view end = ".safetensors";
  if (!name.starts_with(begin) || !name.ends_with(end)) return false;
  const std::string_view numbers = name.substr(begin.size(), name.size() - begin.size() - end.size());
  return numbers.find("-of-") != std::string_view::npos &&
         numbers.find_first_not_of("0123456789-of") == std::string_view::npos;
}

/// Opens `path`: a safetensors or GGUF file, an index (*.safetensors.index.json), or a folder that holds either under
/// the names of PEFT and transformers. In a folder with both, model.safetensors is the model, as it is for
/// transformers. Tensor data is read only when it is used.
class Checkpoint {
 public:
  /// @throws IoError, FormatError
  [[nodiscard]] static Checkpoint open(const std::filesystem::path& path) {
    std::error_code ignored;
    if (!std::filesystem::is_directory(path, ignored)) return of_file(path);
    const std::vector<std::filesystem::path> candidates = {
        path / "model.safetensors", path / "model.safetensors.index.json", path / "adapter_model.safetensors"};
    for (const auto& candidate : candidates) {
      if (!std::filesystem::exists(candidate, ignored)) continue;
      Checkpoint checkpoint = of_file(candidate);
      checkpoint.folder_ = path;
      return checkpoint;
    }
    throw IoError("open checkpoint", in_quotes(path.native(), path.native().size()),
                  "model.safetensors or its index in the folder", "neither");
  }

  [[nodiscard]] const std::vector<Shard>& shards() const noexcept { return shards_; }
  /// The folder it fills; empty for one file that was named itself.
  [[nodiscard]] const std::filesystem::path& folder() const noexcept { return folder_; }
  /// The index file's text; empty for one file.
  [[nodiscard]] const std::string& index() const noexcept { return index_; }
  [[nodiscard]] const std::string& index_name() const noexcept { return index_name_; }
  /// The GGUF file it is; null for safetensors.
  [[nodiscard]] const GgufFile* gguf() const noexcept { return shards_.front().gguf(); }
  /// config.json beside the tensors; nothing if there is none. @throws IoError, FormatError for one that cannot be read
  [[nodiscard]] std::optional<ConfigFile> config_file() const {
    std::error_code ignored;
    const auto path = folder_ / "config.json";
    if (folder_.empty() || !std::filesystem::exists(path, ignored)) return std::nullopt;
    std::string text = read_text(path);
    auto values = parse_config(text, in_quotes(path.native(), path.native().size()));
    return ConfigFile{std::move(text), std::move(values)};
  }
  /// Its values; a discarded value if there is none. @throws like config_file
  [[nodiscard]] nlohmann::json config() const {
    auto file = config_file();
    return file ? std::move(file->values) : nlohmann::json(nlohmann::json::value_t::discarded);
  }

  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, shard] : places_) names.emplace_back(name);
    return names;
  }
  /// The shard that has a tensor; null if none has it.
  [[nodiscard]] const Shard* shard_of(std::string_view name) const noexcept {
    const auto found = std::lower_bound(places_.begin(), places_.end(), Place(name, 0));
    return found != places_.end() && found->first == name ? &shards_[found->second] : nullptr;
  }
  [[nodiscard]] std::optional<StoredTensor> find(std::string_view name) const {
    const Shard* const shard = shard_of(name);
    return shard == nullptr ? std::nullopt : std::optional(*shard->find(name));
  }
  /// Returns the memory of tensor data that has been read to the system.
  void release(const TensorView& tensor) const noexcept {
    const Shard* const shard = shard_of(tensor.name);
    const bool own = shard != nullptr && shard->find(tensor.name)->bytes.data() == tensor.bytes.data();
    if (own) shard->release(tensor.bytes);
  }
  [[nodiscard]] std::uintmax_t bytes() const {
    std::uintmax_t total = 0;
    for (const Shard& shard : shards_) {
      for (const TensorView& tensor : shard.tensors()) total += tensor.bytes.size();
    }
    return total;
  }

 private:
  using Place = std::pair<std::string_view, std::size_t>;  // a tensor's name, and the number of its shard

  static Checkpoint of_file(const std::filesystem::path& path) {
    Checkpoint checkpoint;
    if (path.extension() != ".json") {
      checkpoint.shards_.emplace_back(path);
      checkpoint.places_ = places_in(checkpoint.shards_);
      return checkpoint;
    }
    checkpoint.index_ = read_text(path);
    checkpoint.index_name_ = path.filename().string();
    checkpoint.folder_ = path.has_parent_path() ? path.parent_path() : ".";
    const std::string label = in_quotes(path.native(), path.native().size());
    const SafetensorsWeightMap weight_map = parse_safetensors_weight_map(checkpoint.index_, label);
    std::map<std::string_view, std::vector<std::string_view>> names_by_file;
    for (const auto& [name, file] : weight_map) names_by_file[file].push_back(name);
    for (const auto& [file, names] : names_by_file) {
      const Shard& shard = checkpoint.shards_.emplace_back(checkpoint.folder_ / file);
      for (const std::string_view name : names) require_tensor(shard, name, label);
    }
    checkpoint.places_ = places_in(checkpoint.shards_);
    const auto twin = std::adjacent_find(checkpoint.places_.begin(), checkpoint.places_.end(),
                                         [](const Place& a, const Place& b) { return a.first == b.first; });
    if (twin != checkpoint.places_.end()) {
      throw FormatError("open checkpoint", label, "every tensor in one shard", in_quotes(twin->first) + " in two");
    }
    return checkpoint;
  }

  static std::vector<Place> places_in(const std::vector<Shard>& shards) {
    std::vector<Place> places;
    for (std::size_t i = 0; i < shards.size(); ++i) {
      for (const TensorView& tensor : shards[i].tensors()) places.emplace_back(tensor.name, i);
    }
    std::sort(places.begin(), places.end());
    return places;
  }

  static void require_tensor(const Shard& shard, std::string_view name, std::string_view label) {
    if (shard.find(name) != nullptr) return;
    throw FormatError("open checkpoint", label, in_quotes(name) + " in " + in_quotes(shard.name()),
                      "a file without that tensor");
  }

  std::vector<Shard> shards_;
  std::vector<Place> places_;  // by ascending name
  std::filesystem::path folder_;
  std::string index_;
  std::string index_name_;
};

}  // namespace lora::tools
