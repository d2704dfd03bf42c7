// SPDX-License-Identifier: MIT
// Labelled images, and Fashion-MNIST as Debian packages it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/idx.hpp"
#include "lora/core/error.hpp"
#include "lora/core/types.hpp"

namespace examples {

using lora::Index;

/// Grey images of one size with a label each.
struct ImageSet {
  Index height = 0;
  Index width = 0;
  std::vector<std::uint8_t> pixels;  ///< count x height x width, row-major
  std::vector<std::uint8_t> labels;  ///< count

  [[nodiscard]] Index count() const noexcept { return static_cast<Index>(labels.size()); }
  [[nodiscard]] Index image_size() const noexcept { return height * width; }

  [[nodiscard]] std::span<const std::uint8_t> image(Index i) const noexcept {
    return std::span(pixels).subspan(static_cast<std::size_t>(i * image_size()),
                                     static_cast<std::size_t>(image_size()));
  }

  /// Images [first, first + count). A copy.
  [[nodiscard]] ImageSet slice(Index first, Index length) const {
    const auto part = [&](const std::vector<std::uint8_t>& all, Index size) {
      return std::vector<std::uint8_t>(all.begin() + first * size, all.begin() + (first + length) * size);
    };
    return {height, width, part(pixels, image_size()), part(labels, 1)};
  }
};

inline constexpr Index fashion_mnist_classes = 10;
inline constexpr std::array<std::string_view, fashion_mnist_classes> fashion_mnist_class_names = {
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"};
inline constexpr std::string_view fashion_mnist_folder = "/usr/share/datasets/fashion-mnist";

/// Images and labels from two IDX files that belong together.
/// @throws lora::IoError, lora::FormatError, also when their counts differ or a label is not below `classes`.
[[nodiscard]] inline ImageSet read_image_set(const std::filesystem::path& images, const std::filesystem::path& labels,
                                             Index classes) {
  IdxArray image_array = read_idx(images, 3);
  IdxArray label_array = read_idx(labels, 1);
  if (image_array.shape[0] != label_array.shape[0]) {
    throw lora::FormatError("read_image_set", labels.string(), std::to_string(image_array.shape[0]) + " labels",
                            std::to_string(label_array.shape[0]));
  }
  for (const auto label : label_array.values) {
    if (label >= classes) {
      throw lora::FormatError("read_image_set", labels.string(), "labels below " + std::to_string(classes),
                              std::to_string(label));
    }
  }
  return {static_cast<Index>(image_array.shape[1]), static_cast<Index>(image_array.shape[2]),
          std::move(image_array.values), std::move(label_array.values)};
}

struct FashionMnist {
  ImageSet train;  ///< 60,000
  ImageSet test;   ///< 10,000
};

/// @throws lora::IoError that says what to install when the files are missing, lora::FormatError.
[[nodiscard]] inline FashionMnist read_fashion_mnist(const std::filesystem::path& folder = fashion_mnist_folder) {
  const auto read = [&](const std::string& part) {
    const auto images = folder / (part + "-images-idx3-ubyte.gz");
    const auto labels = folder / (part + "-labels-idx1-ubyte.gz");
    for (const auto& path : {images, labels}) {
      if (!std::filesystem::exists(path)) {
        throw lora::IoError("read_fashion_mnist", path.string(),
                            "the dataset's files (on Debian: apt-get install dataset-fashion-mnist; "
                            "elsewhere: --data-dir FOLDER)",
                            "no such file");
      }
    }
    return read_image_set(images, labels, fashion_mnist_classes);
  };
  return {read("train"), read("t10k")};
}

}  // namespace examples
