// SPDX-License-Identifier: MIT
// Writes a checkpoint that differs from another in some tensors, in bounded memory.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint.hpp"
#include "common/json_text.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/gguf_encoder.hpp"
#include "lora/io/json_stream.hpp"
#include "lora/io/safetensors.hpp"
#include "output.hpp"
#include "progress.hpp"
#include "storage.hpp"

namespace lora::tools {

/// Passes the bytes of a tensor to the sink.
using Producer = std::function<void(const SafetensorsWriter::Sink&)>;

/// A tensor as it is to be written.
struct NewTensor {
  Dtype dtype = Dtype::F32;
  std::vector<Index> shape;
  Producer produce;
  std::optional<GgufType> blocks{};  ///< in a GGUF file, with dtype U8 and the shape of the elements
  std::string beside{};              ///< of a new tensor: the one in whose shard it is to be

  [[nodiscard]] std::size_t bytes() const {
    std::size_t elements = 1;
    for (const Index extent : shape) elements *= static_cast<std::size_t>(extent);
    return (blocks ? Storage(*blocks) : Storage(dtype)).bytes_of(elements);
  }
  [[nodiscard]] bool is_stored_like(const StoredTensor& other) const {
    return dtype == other.dtype && blocks == other.blocks && shape == other.shape;
  }
};

/// What differs from the checkpoint read. Tensors that it does not have are added to it.
struct Changes {
  std::map<std::string, NewTensor, std::less<>> tensors;
  std::set<std::string, std::less<>> removed;
  GgufMetadata metadata;  ///< values that are new or replace others
  std::string config;     ///< the new config.json; empty if it stays
};

namespace detail {

/// Writes one checkpoint. All of it goes to the output's folder or file; the caller commits.
class CheckpointWriter {
 public:
  CheckpointWriter(const Checkpoint& source, const Changes& changes, const std::string& doing)
      : source_(source), changes_(changes), progress_(doing, source.bytes()) {
    for (const auto& [name, tensor] : changes.tensors) {
      const auto there = source.find(name);
      if (!there) added_[&home_of(tensor)].push_back(name);
      keeps_index_ = keeps_index_ && there && tensor.is_stored_like(*there);
    }
    keeps_index_ = keeps_index_ && changes.removed.empty();
  }

  void write(const std::filesystem::path& path, const std::filesystem::path& target) {
    const bool folder = !source_.folder().empty();
    for (const Shard& shard : source_.shards()) {
      const auto file = folder ? path / shard.name() : path;
      shard.gguf() != nullptr ? write_gguf(shard, file) : write_safetensors(shard, file);
    }
    if (!source_.index().empty()) write_text(path / source_.index_name(), keeps_index_ ? source_.index() : index());
    if (!folder) return;
    if (!changes_.config.empty()) write_text(path / "config.json", changes_.config);
    std::error_code ignored;
    // Of a folder that is replaced, they stay.
    if (!std::filesystem::equivalent(source_.folder(), target, ignored)) copy_companions(path);
  }

 private:
  static constexpr std::size_t piece = std::size_t{4} << 20;

  static void write_text(const std::filesystem::path& path, const std::string& text) {
    AtomicFile file(path);
    file.write(std::as_bytes(std::span(text)));
    file.commit();
  }

  void copy_bytes(const Shard& shard, std::span<const std::byte> bytes, const SafetensorsWriter::Sink& sink) {
    for (std::size_t i = 0; i < bytes.size(); i += piece) {
      const auto part = bytes.subspan(i, std::min(piece, bytes.size() - i));
      sink(part);
      shard.release(part);
      progress_.advance(part.size());
    }
  }

  void write_safetensors(const Shard& shard, const std::filesystem::path& path) {
    SafetensorsWriter writer;
    for (const auto& [key, value] : shard.safetensors()->metadata()) writer.add_metadata(key, value);
    for (const StoredTensor& tensor : shard.tensors()) {
      if (changes_.removed.contains(tensor.name)) continue;
      const auto found = changes_.tensors.find(tensor.name);
      if (found != changes_.tensors.end()) {
        add(writer, found->first, found->second, [this, &shard, &tensor] {
          shard.release(tensor.bytes);
          progress_.advance(tensor.bytes.size());
        });
      } else {
        writer.add_stream(
            std::string(tensor.name), tensor.dtype, tensor.shape,
            [this, &shard, &tensor](const SafetensorsWriter::Sink& sink) { copy_bytes(shard, tensor.bytes, sink); });
      }
    }
    for (const auto& name : added_[&shard]) add(writer, name, changes_.tensors.find(name)->second, [] {});
    writer.write(path);
  }

  /// The shard that is to have a new tensor.
  [[nodiscard]] const Shard& home_of(const NewTensor& tensor) const {
    const Shard* const home = tensor.beside.empty() ? nullptr : source_.shard_of(tensor.beside);
    return home != nullptr ? *home : source_.shards().back();
  }

  template <class Done>
  static void add(SafetensorsWriter& writer, const std::string& name, const NewTensor& tensor, Done done) {
    writer.add_stream(name, tensor.dtype, tensor.shape, [&tensor, done](const SafetensorsWriter::Sink& sink) {
      tensor.produce(sink);
      done();
    });
  }

  void write_gguf(const Shard& shard, const std::filesystem::path& path) {
    const bool in_place = std::all_of(changes_.tensors.begin(), changes_.tensors.end(), [&](const auto& entry) {
      const StoredTensor* const there = shard.find(entry.first);
      return there != nullptr && entry.second.is_stored_like(*there);
    });
    in_place&& changes_.metadata.empty() ? write_gguf_in_place(shard, path) : write_gguf_anew(shard, path);
  }

  /// Lays the file out anew, with the tensors in their order.
  void write_gguf_anew(const Shard& shard, const std::filesystem::path& path) {
    const GgufContents& contents = shard.gguf()->contents;
    GgufMetadata metadata = contents.metadata;
    for (const auto& [key, value] : changes_.metadata) metadata[key] = value;
    const std::size_t alignment = alignment_of(metadata);
    lora::detail::GgufEncoder encoder(alignment);
    for (const auto& [key, value] : metadata) encoder.add_metadata(key, value);
    for (const GgufTensor& tensor : contents.tensors) describe(tensor, encoder);
    AtomicFile file(path);
    file.write(encoder.head());
    for (const GgufTensor& tensor : contents.tensors) {
      std::size_t written = 0;
      const SafetensorsWriter::Sink sink = [&](std::span<const std::byte> bytes) {
        file.write(bytes);
        written += bytes.size();
      };
      const auto found = changes_.tensors.find(tensor.name);
      if (found == changes_.tensors.end()) {
        copy_bytes(shard, tensor.bytes, sink);
      } else {
        found->second.produce(sink);
        shard.release(tensor.bytes);
        progress_.advance(tensor.bytes.size());
      }
      const std::vector<std::byte> padding(lora::detail::gguf_padded(written, alignment) - written);
      file.write(padding);
    }
    file.commit();
  }

  [[nodiscard]] static std::size_t alignment_of(const GgufMetadata& metadata) {
    const auto found = metadata.find("general.alignment");
    return found == metadata.end() ? lora::detail::gguf_default_alignment : std::get<std::uint32_t>(found->second);
  }

  void describe(const GgufTensor& tensor, lora::detail::GgufEncoder& encoder) const {
    std::size_t dimensions = tensor.extents.size();
    while (dimensions > 1 && tensor.extents[dimensions - 1] == 1) --dimensions;
    const auto extents = std::span(tensor.extents).first(dimensions);
    const auto found = changes_.tensors.find(tensor.name);
    if (found == changes_.tensors.end()) {
      encoder.describe_tensor(tensor.name, extents, tensor.type, tensor.bytes.size());
      return;
    }
    const NewTensor& changed = found->second;
    const auto type = changed.blocks ? changed.blocks : gguf_type_of_dtype(changed.dtype);
    encoder.describe_tensor(tensor.name, extents, *type, changed.bytes());
  }

  // Changed tensors have the size of those they replace, so everything else stays where it is.
  void write_gguf_in_place(const Shard& shard, const std::filesystem::path& path) {
    AtomicFile file(path);
    const SafetensorsWriter::Sink sink = [&](std::span<const std::byte> bytes) { file.write(bytes); };
    const auto all = shard.gguf()->mapping.bytes();
    auto order = shard.tensors();
    std::sort(order.begin(), order.end(),
              [](const TensorView& a, const TensorView& b) { return a.bytes.data() < b.bytes.data(); });
    std::size_t done = 0;
    for (const TensorView& tensor : order) {
      const auto found = changes_.tensors.find(tensor.name);
      if (found == changes_.tensors.end()) continue;
      const auto begin = static_cast<std::size_t>(tensor.bytes.data() - all.data());
      copy_bytes(shard, all.subspan(done, begin - done), sink);
      found->second.produce(sink);
      shard.release(tensor.bytes);
      progress_.advance(tensor.bytes.size());
      done = begin + tensor.bytes.size();
    }
    copy_bytes(shard, all.subspan(done), sink);
    file.commit();
  }

  [[nodiscard]] std::string index() const {
    // As deep as the index was read; by ascending names, as transformers writes it, for names are looked up.
    auto json = examples::parse_json(source_.index(), lora::detail::JsonHandler::deepest);
    for (const auto& [shard, names] : added_) {
      for (const auto& name : names) json["weight_map"][name] = shard->name();
    }
    for (const auto& name : changes_.removed) json["weight_map"].erase(name);
    std::uintmax_t total = 0;
    for (const auto& [name, tensor] : changes_.tensors) {
      total += tensor.bytes();
    }
    for (const Shard& shard : source_.shards()) {
      for (const TensorView& tensor : shard.tensors()) {
        const bool stays = !changes_.tensors.contains(tensor.name) && !changes_.removed.contains(tensor.name);
        if (stays) total += tensor.bytes.size();
      }
    }
    if (json.contains("metadata") && json["metadata"].is_object()) json["metadata"]["total_size"] = total;
    return json.dump(2) + "\n";
  }

  // The files that go with a model: its configuration, the tokenizer's files, the licence. Weights in other formats
  // would not match, and an adapter beside the model would be added to it again.
  [[nodiscard]] static bool is_companion(std::string_view name) {
    for (const std::string_view weights : {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt",
                                           ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}) {
      if (name.ends_with(weights)) return false;
    }
    return !name.starts_with('.') && name != "adapter_config.json";
  }

  void copy_companions(const std::filesystem::path& path) const {
    std::error_code error;
    std::vector<std::filesystem::path> found;
    std::filesystem::directory_iterator entry(source_.folder(), error);
    for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
      std::error_code ignored;
      if (is_companion(entry->path().filename().native()) && entry->is_regular_file(ignored)) {
        found.push_back(entry->path());
      }
    }
    if (error) throw_io_error("write checkpoint", source_.folder(), "a readable folder", error.value());
    for (const auto& from : found) {
      const auto to = path / from.filename();
      std::error_code ignored;
      if (!std::filesystem::exists(to, ignored)) write_copy(from, to);
    }
  }

  const Checkpoint& source_;
  const Changes& changes_;
  Progress progress_;
  std::map<const Shard*, std::vector<std::string>> added_;  // new tensors, by the shard that gets them
  bool keeps_index_ = true;
};

}  // namespace detail

/// Writes `source` to `target` with the same files, names and metadata; tensors in `changes` are written from there,
/// all others are copied. Data is read and written in pieces, and its pages are released. A folder is written as a
/// folder, with the configuration, the tokenizer's files and the like beside the tensors; a file as a file. The target
/// appears, or changes, as a whole or not at all.
/// @throws ConfigError for an existing target without `force`; IoError, FormatError, what the producers throw
inline void write_checkpoint(const Checkpoint& source, Output& output, const Changes& changes,
                             const std::string& doing) {
  detail::CheckpointWriter(source, changes, doing).write(output.path(), output.target());
  output.commit();
}

/// The place for a checkpoint like `source`. @throws like Output; ConfigError for a name that says another kind of file
[[nodiscard]] inline Output place_for(const Checkpoint& source, const std::filesystem::path& target, bool force) {
  const bool gguf = source.gguf() != nullptr;
  if (is_gguf(target) != gguf) {
    throw ConfigError("output", in_quotes(target.native(), target.native().size()),
                      gguf ? "a name that ends in .gguf, as the checkpoint is GGUF"
                           : "a name that does not end in .gguf, as the checkpoint is safetensors",
                      "the other");
  }
  return {target, source.folder().empty() ? Output::Kind::file : Output::Kind::folder, force, belongs_to_checkpoint};
}

}  // namespace lora::tools
