// SPDX-License-Identifier: MIT
// Reads the golden vectors: safetensors files with a JSON description of the case in their metadata.
// It is independent of the library's own reader, so that neither hides an error of the other.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/little_endian.hpp"
#include "lora/core/types.hpp"

namespace lora::testing {

/// The file of a golden case; the folder comes from the build.
inline std::filesystem::path golden_path(const std::string& name) {
  return std::filesystem::path(LORA_GOLDEN_DIR) / (name + ".safetensors");
}

/// One golden case. Every function throws std::runtime_error or an exception of nlohmann::json on what it cannot read.
class Golden {
 public:
  [[nodiscard]] static Golden load(const std::filesystem::path& path) { return Golden(path); }

  /// The description of the case: kind, dtype, lora, layer, optimizer, ... In files of number formats, which have no
  /// description under "case", the metadata itself.
  [[nodiscard]] const nlohmann::json& description() const noexcept { return description_; }
  [[nodiscard]] bool contains(const std::string& name) const { return header_.contains(name); }
  [[nodiscard]] std::vector<Index> shape(const std::string& name) const { return header_.at(name).at("shape"); }

  /// A tensor (n_0, n_1, ...) of F64, F32 or I64 as a matrix of n_0 rows; one of fewer than two dimensions is one row.
  template <class Scalar = double>
  [[nodiscard]] Matrix<Scalar> matrix(const std::string& name) const {
    const std::vector<Index> extents = shape(name);
    Index size = 1;
    for (const Index extent : extents) size *= extent;
    const Index rows = extents.size() < 2 ? 1 : extents.front();
    Matrix<Scalar> result(rows, rows == 0 ? 0 : size / rows);
    const std::string dtype = header_.at(name).at("dtype");
    if (dtype == "F64") {
      fill<double>(name, result);
    } else if (dtype == "F32") {
      fill<float>(name, result);
    } else if (dtype == "I64") {
      fill<std::int64_t>(name, result);
    } else {
      throw std::runtime_error("golden tensor " + name + " has dtype " + dtype);
    }
    return result;
  }

  /// The elements of a tensor of U8.
  [[nodiscard]] std::vector<std::uint8_t> bytes(const std::string& name) const {
    const std::string dtype = header_.at(name).at("dtype");
    if (dtype != "U8") throw std::runtime_error("golden tensor " + name + " has dtype " + dtype);
    std::size_t size = 1;
    for (const Index extent : shape(name)) size *= static_cast<std::size_t>(extent);
    std::vector<std::uint8_t> result(size);
    std::memcpy(result.data(), data(name, size), size);
    return result;
  }

 private:
  explicit Golden(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + path.string());
    bytes_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (bytes_.size() < sizeof(std::uint64_t)) throw std::runtime_error(path.string() + " is truncated");
    const auto header_size = load_little_endian<std::uint64_t>(bytes_.data());
    if (header_size > bytes_.size() - sizeof(header_size)) throw std::runtime_error(path.string() + " is truncated");
    data_begin_ = sizeof(header_size) + static_cast<std::size_t>(header_size);
    header_ = nlohmann::json::parse(bytes_.data() + sizeof(header_size), bytes_.data() + data_begin_);
    const auto& metadata = header_.at("__metadata__");
    description_ = metadata.contains("case") ? nlohmann::json::parse(metadata.at("case").get<std::string>()) : metadata;
  }

  /// The stored bytes of a tensor that must have `size` of them.
  [[nodiscard]] const char* data(const std::string& name, std::size_t size) const {
    const auto [begin, end] = header_.at(name).at("data_offsets").get<std::pair<std::size_t, std::size_t>>();
    if (end < begin || end - begin != size || end > bytes_.size() - data_begin_) {
      throw std::runtime_error("golden tensor " + name + " has offsets that do not fit");
    }
    return bytes_.data() + data_begin_ + begin;
  }

  template <class Stored, class Scalar>
  void fill(const std::string& name, Matrix<Scalar>& result) const {
    const char* stored_bytes = data(name, static_cast<std::size_t>(result.size()) * sizeof(Stored));
    for (Index i = 0; i < result.size(); ++i) {
      const auto stored = load_little_endian<Stored>(stored_bytes + static_cast<std::size_t>(i) * sizeof(Stored));
      result.data()[i] = static_cast<Scalar>(stored);
    }
  }

  std::vector<char> bytes_;
  std::size_t data_begin_ = 0;
  nlohmann::json header_;
  nlohmann::json description_;
};

}  // namespace lora::testing
