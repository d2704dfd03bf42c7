// SPDX-License-Identifier: MIT
// Each way a safetensors file, or a request to one, can be wrong.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"

namespace lora {

/// The first group contains the kinds of the format's reference implementation (huggingface/safetensors,
/// SafeTensorError); its JsonError cannot occur here and its IoError is lora::IoError. The second group is this
/// library's own.
enum class SafetensorsErrorKind : std::uint8_t {
  header_too_small,                ///< fewer than 8 bytes
  header_too_large,                ///< header length over 100,000,000
  invalid_header_length,           ///< header reaches past the end of the file
  invalid_header,                  ///< header, or a name to be written, is not UTF-8
  invalid_header_deserialization,  ///< header is not the JSON that the format asks for
  invalid_offset,                  ///< a tensor does not begin where the one before it ends, or ends before it begins
  validation_overflow,             ///< the number of bits in a shape overflows 64 bits
  misaligned_slice,                ///< elements smaller than a byte do not fill whole bytes
  tensor_invalid_info,             ///< the bytes between the offsets do not match shape and dtype
  metadata_incomplete_buffer,      ///< the tensors do not exactly cover the rest of the file
  tensor_not_found,                ///< no tensor of that name
  invalid_tensor_view,             ///< the bytes to be written do not match shape and dtype
  duplicate_name,                  ///< a tensor or metadata key to be written exists already
  reserved_name,                   ///< a tensor to be written is called __metadata__
  unexpected_dtype,                ///< the stored dtype does not convert to the requested type
  unexpected_shape,                ///< the stored shape is not the requested one
};

/// The kind's name, as the reference implementation spells it: "HeaderTooSmall".
[[nodiscard]] constexpr std::string_view name_of(SafetensorsErrorKind kind) noexcept {
  constexpr std::array<std::string_view, 16> names{"HeaderTooSmall",
                                                   "HeaderTooLarge",
                                                   "InvalidHeaderLength",
                                                   "InvalidHeader",
                                                   "InvalidHeaderDeserialization",
                                                   "InvalidOffset",
                                                   "ValidationOverflow",
                                                   "MisalignedSlice",
                                                   "TensorInvalidInfo",
                                                   "MetadataIncompleteBuffer",
                                                   "TensorNotFound",
                                                   "InvalidTensorView",
                                                   "DuplicateName",
                                                   "ReservedName",
                                                   "UnexpectedDtype",
                                                   "UnexpectedShape"};
  return names[static_cast<std::size_t>(kind)];
}

/// A safetensors file breaks a rule of its format, or does not contain what was requested.
class SafetensorsError : public FormatError {
 public:
  /// `argument` is the file or the tensor.
  SafetensorsError(SafetensorsErrorKind kind, std::string_view argument, std::string_view expected,
                   std::string_view got)
      : FormatError(std::string("safetensors ").append(name_of(kind)), argument, expected, got), kind_(kind) {}

  /// Which rule is broken.
  [[nodiscard]] SafetensorsErrorKind kind() const noexcept { return kind_; }

 private:
  SafetensorsErrorKind kind_;
};

}  // namespace lora
