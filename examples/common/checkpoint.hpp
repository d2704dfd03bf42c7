// SPDX-License-Identifier: MIT
// Networks in safetensors files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "common/dense_layer.hpp"
#include "common/mlp.hpp"
#include "lora/io/safetensors.hpp"

namespace examples {

/// Writes "fc1.weight", "fc1.bias" and so on, all or nothing.
/// @throws lora::IoError
inline void save_network(const Mlp<DenseLayer<float>>& network, const std::filesystem::path& path) {
  lora::SafetensorsWriter writer;
  writer.add_metadata("format", "pt");
  for (std::size_t l = 0; l < network.layers().size(); ++l) {
    const std::string name = network.layer_name(l);
    writer.add(name + ".weight", network.layers()[l].weight());
    writer.add(name + ".bias", network.layers()[l].bias());
  }
  writer.write(path);
}

/// Reads what save_network wrote: layers fc1, fc2, ... up to the last that is there.
/// @throws lora::IoError, lora::FormatError, lora::ShapeError
[[nodiscard]] inline Mlp<DenseLayer<float>> load_network(const std::filesystem::path& path) {
  const auto file = lora::SafetensorsFile::open(path);
  std::vector<DenseLayer<float>> layers;
  using Network = Mlp<DenseLayer<float>>;
  do {
    const std::string name = Network::layer_name(layers.size());
    lora::Matrix<float> weight = file.matrix<float>(name + ".weight");
    const lora::Matrix<float> bias = file.matrix<float>(name + ".bias");
    layers.emplace_back(std::move(weight), lora::RowVector<float>(bias.row(0)));
  } while (file.contains(Network::layer_name(layers.size()) + ".weight"));
  return Network(std::move(layers));
}

}  // namespace examples
