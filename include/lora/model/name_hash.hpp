// SPDX-License-Identifier: MIT
// A number for a module's name.
#pragma once

#include <cstdint>
#include <string_view>

namespace lora::detail {

/// FNV-1a. What is drawn at random for a module follows from its name alone, whatever other modules there are.
[[nodiscard]] constexpr std::uint64_t name_hash(std::string_view name) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char letter : name) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3U;
  return hash;
}

}  // namespace lora::detail
