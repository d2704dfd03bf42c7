// SPDX-License-Identifier: MIT
// A hash of bytes, to pin values that must be the same on every platform.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lora::testing {

/// FNV-1a with 64 bits (Fowler, Noll, Vo). Scalars are hashed as little-endian machines store them.
inline std::uint64_t fnv1a(const void* data, std::size_t bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325U;
  const auto* byte = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ byte[i]) * 0x100000001b3U;
  return hash;
}

}  // namespace lora::testing
