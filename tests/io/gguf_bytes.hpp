// SPDX-License-Identifier: MIT
// Builds GGUF files byte by byte, by nothing of the library's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lora::testing {

/// A growing file. Numbers are little-endian.
class GgufBytes {
 public:
  GgufBytes& raw(std::string_view text) {
    for (const char letter : text) bytes_.push_back(static_cast<std::byte>(letter));
    return *this;
  }
  GgufBytes& u8(std::uint8_t value) { return integer(value, 1); }
  GgufBytes& u32(std::uint32_t value) { return integer(value, 4); }
  GgufBytes& u64(std::uint64_t value) { return integer(value, 8); }
  GgufBytes& f32(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    return u32(bits);
  }
  GgufBytes& text(std::string_view value) { return u64(value.size()).raw(value); }
  GgufBytes& pad(std::size_t alignment) {
    while (bytes_.size() % alignment != 0) u8(0);
    return *this;
  }

  /// "GGUF", version 3, counts.
  static GgufBytes header(std::uint64_t tensors, std::uint64_t values) {
    return GgufBytes().raw("GGUF").u32(3).u64(tensors).u64(values);
  }
  GgufBytes& string_value(std::string_view key, std::string_view value) { return text(key).u32(8).text(value); }
  GgufBytes& float_value(std::string_view key, float value) { return text(key).u32(6).f32(value); }
  GgufBytes& tensor(std::string_view name, const std::vector<std::uint64_t>& extents, std::uint32_t type,
                    std::uint64_t offset) {
    text(name).u32(static_cast<std::uint32_t>(extents.size()));
    for (const auto extent : extents) u64(extent);
    return u32(type).u64(offset);
  }

  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  GgufBytes& integer(std::uint64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes_.push_back(static_cast<std::byte>(value >> (8 * i) & 0xFFU));
    return *this;
  }

  std::vector<std::byte> bytes_;
};

/// The metadata of an adapter, as llama.cpp's converter orders it; `more_values` are to follow.
[[nodiscard]] inline GgufBytes adapter_header(std::uint64_t tensors, float alpha = 8, std::uint64_t more_values = 0) {
  return GgufBytes::header(tensors, 4 + more_values)
      .string_value("general.architecture", "llama")
      .string_value("general.type", "adapter")
      .string_value("adapter.type", "lora")
      .float_value("adapter.lora.alpha", alpha);
}

/// An adapter of rank 2 for blk.0.attn_v, 3 inputs and 1 output, alpha 8: A = [1 2 3; 4 5 6], B = [7 8].
[[nodiscard]] inline GgufBytes small_adapter() {
  GgufBytes file = adapter_header(2);
  file.tensor("blk.0.attn_v.weight.lora_a", {3, 2}, 0, 0).tensor("blk.0.attn_v.weight.lora_b", {2, 1}, 0, 32).pad(32);
  for (const float value : {1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F}) file.f32(value);
  file.pad(32).f32(7).f32(8).pad(32);
  return file;
}

}  // namespace lora::testing
