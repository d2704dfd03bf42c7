// SPDX-License-Identifier: MIT
// A network's adapters in a safetensors file.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "common/plot.hpp"
#include "fashion_mnist/method.hpp"
#include "lora/io/safetensors.hpp"

namespace examples {

/// Writes "fc1.lora_A.weight", "fc1.lora_B.weight" and so on, with rank and alpha as metadata; all or nothing.
/// @throws lora::IoError
inline void save_adapter(const LoraNetwork& network, const std::filesystem::path& path) {
  lora::SafetensorsWriter writer;
  const auto& config = network.layers().front().config();
  writer.add_metadata("format", "pt");
  writer.add_metadata("rank", std::to_string(config.rank));
  writer.add_metadata("alpha", number_text(config.alpha));
  writer.add_metadata("target_modules", "fc1 fc2 fc3");
  writer.add_metadata("task", "Fashion-MNIST, each image rotated by 90 degrees and inverted");
  for (std::size_t l = 0; l < network.layers().size(); ++l) {
    const std::string name = LoraNetwork::layer_name(l);
    writer.add(name + ".lora_A.weight", network.layers()[l].lora_A());
    writer.add(name + ".lora_B.weight", network.layers()[l].lora_B());
  }
  writer.write(path);
}

namespace detail {

/// @throws lora::FormatError unless all of the text is a number.
template <class Number>
[[nodiscard]] Number metadata_number(const lora::SafetensorsFile& file, std::string_view key) {
  const auto found = file.metadata().find(key);
  const std::string text = found == file.metadata().end() ? std::string() : found->second;
  Number value{};
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc() || end != text.data() + text.size()) {
    throw lora::FormatError("load_adapter", file.label() + ", metadata " + std::string(key), "a number", text);
  }
  return value;
}

}  // namespace detail

/// The base network with the adapters of a file that save_adapter wrote.
/// @throws lora::IoError, lora::FormatError, lora::ConfigError, lora::ShapeError when the adapters do not fit the base
[[nodiscard]] inline LoraNetwork load_adapter(const DenseNetwork& base, const std::filesystem::path& path) {
  const auto file = lora::SafetensorsFile::open(path);
  const lora::LoraConfig config{.rank = detail::metadata_number<Index>(file, "rank"),
                                .alpha = detail::metadata_number<double>(file, "alpha")};
  LoraNetwork network = with_adapters(base, config, 0);
  for (std::size_t l = 0; l < network.layers().size(); ++l) {
    const std::string name = LoraNetwork::layer_name(l);
    network.layers()[l].set_factors(file.matrix<float>(name + ".lora_A.weight"),
                                    file.matrix<float>(name + ".lora_B.weight"));
  }
  return network;
}

}  // namespace examples
