// SPDX-License-Identifier: MIT
// The number formats that the encoder's frozen kernels can be kept in.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/view.hpp"
#include "lora/format/bf16.hpp"
#include "lora/format/nf4.hpp"
#include "lora/format/q8_0.hpp"
#include "lora/weight/any_weight.hpp"
#include "lora/weight/quantized.hpp"

namespace examples::sentence_encoder {

/// `scalar` is the layers' own type, float or double; the others are encoded from float.
enum class WeightFormat : std::uint8_t { scalar, bf16, q8_0, nf4 };

/// By the names of the command line.
inline constexpr std::array<std::pair<std::string_view, WeightFormat>, 4> weight_formats = {
    {{"float", WeightFormat::scalar},
     {"bf16", WeightFormat::bf16},
     {"q8_0", WeightFormat::q8_0},
     {"nf4", WeightFormat::nf4}}};

[[nodiscard]] constexpr std::string_view name_of(WeightFormat format) noexcept {
  for (const auto& entry : weight_formats) {
    if (entry.second == format) return entry.first;
  }
  return {};
}

/// All names, in order.
[[nodiscard]] inline std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const auto& entry : weight_formats) names.emplace_back(entry.first);
  return names;
}

/// @throws lora::ConfigError for any other name
[[nodiscard]] inline WeightFormat format_named(std::string_view name) {
  for (const auto& entry : weight_formats) {
    if (entry.first == name) return entry.second;
  }
  throw lora::ConfigError("format_named", "format", "float, bf16, q8_0 or nf4", std::string(name));
}

/// False where several weights share a scale: adapters over such blocks are served unmerged.
[[nodiscard]] constexpr bool can_be_merged_into(WeightFormat format) noexcept {
  return format == WeightFormat::scalar || format == WeightFormat::bf16;
}

/// `weight` (out_features x in_features, any strides), packed or encoded.
/// @throws lora::ShapeError where in_features is no multiple of the format's block size; lora::ConfigError for numbers
/// out of its range, and for formats other than `scalar` of double
template <lora::RealScalar Scalar>
[[nodiscard]] lora::AnyWeight<Scalar> frozen_weight(WeightFormat format, const lora::MatrixView<const Scalar>& weight) {
  namespace formats = lora::formats;
  if (format == WeightFormat::scalar) return lora::AnyWeight<Scalar>(weight);
  if constexpr (std::same_as<Scalar, float>) {
    if (format == WeightFormat::bf16) return lora::QuantizedWeight<formats::BF16>::quantize(weight);
    if (format == WeightFormat::q8_0) return lora::QuantizedWeight<formats::Q8_0>::quantize(weight);
    return lora::QuantizedWeight<formats::NF4<>>::quantize(weight);
  } else {
    throw lora::ConfigError("frozen_weight", "format", "float for layers of double", std::string(name_of(format)));
  }
}

}  // namespace examples::sentence_encoder
