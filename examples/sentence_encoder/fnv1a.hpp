// SPDX-License-Identifier: MIT
// A hash by which files and texts are told apart.
#pragma once

#include <cstdint>
#include <string_view>

namespace examples::sentence_encoder {

/// FNV-1a over 64 bits, or its continuation from the hash of what came before.
/// Source: Fowler, Noll, Vo, Eastlake, "The FNV Non-Cryptographic Hash Algorithm".
[[nodiscard]] constexpr std::uint64_t fnv1a(std::string_view bytes,
                                            std::uint64_t before = 0xCBF29CE484222325U) noexcept {
  std::uint64_t hash = before;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3U;
  return hash;
}

}  // namespace examples::sentence_encoder
