// Writes a checkpoint that differs from another in some tensors, in bounded memory.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>

#include "checkpoint.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/safetensors.hpp"
#include "output.hpp"
#include "progress.hpp"

namespace lora::tools {

/// Passes the bytes of a tensor to the sink.
using Producer = std::function<void(const SafetensorsWriter::Sink&)>;

/// Writes `source` to `target` with the same files, names, dtypes, shapes and metadata; tensors named in `changed` get
/// their bytes from there, all others are copied. Data is read and written in pieces, and its pages are released. A
/// checkpoint with an index is written to a folder, a single file to a file.
/// @throws ConfigError for an existing target without `force`; IoError, FormatError
inline void write_checkpoint(const Checkpoint& source, const std::filesystem::path& target, bool force,
                             const std::map<std::string, Producer>& changed, const std::string& doing) {
  require_free(target, force);
  Progress progress(doing, source.bytes());
  const bool sharded = !source.index().empty();
  if (sharded) std::filesystem::create_directories(target);
  for (const Shard& shard : source.shards()) {
    SafetensorsWriter writer;
    for (const auto& [key, value] : shard.file.metadata()) writer.add_metadata(key, value);
    for (const auto name : shard.file.names()) {
      const TensorView tensor = shard.file.tensor(name);
      const auto found = changed.find(std::string(name));
      writer.add_stream(std::string(name), tensor.dtype, tensor.shape,
                        [&, tensor, producer = found == changed.end() ? nullptr : &found->second](
                            const SafetensorsWriter::Sink& sink) {
                          constexpr std::size_t piece = std::size_t{4} << 20;
                          if (producer != nullptr) (*producer)(sink);
                          for (std::size_t i = 0; producer == nullptr && i < tensor.bytes.size(); i += piece) {
                            const auto part = tensor.bytes.subspan(i, std::min(piece, tensor.bytes.size() - i));
                            sink(part);
                            shard.file.release(part);
                          }
                          shard.file.release(tensor.bytes);
                          progress.advance(tensor.bytes.size());
                        });
    }
    writer.write(sharded ? target / shard.name : target);
  }
  if (!sharded) return;
  AtomicFile index(target / source.index_name());
  index.write(std::as_bytes(std::span(source.index())));
  index.commit();
}

}  // namespace lora::tools
