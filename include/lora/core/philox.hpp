// SPDX-License-Identifier: MIT
// Philox4x32-10: random bits as a pure function of a key and a counter.
#pragma once

#include <array>
#include <cstdint>

namespace lora {

/// The block of four 32-bit words that Philox4x32-10 assigns to a counter under a key.
/// Pure, reentrant, the same on every platform.
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
[[nodiscard]] constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                                std::array<std::uint32_t, 2> key) noexcept {
  constexpr std::uint64_t multiplier0 = 0xD2511F53U;
  constexpr std::uint64_t multiplier1 = 0xCD9E8D57U;
  constexpr std::uint32_t weyl0 = 0x9E3779B9U;
  constexpr std::uint32_t weyl1 = 0xBB67AE85U;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = multiplier0 * counter[0];
    const std::uint64_t product1 = multiplier1 * counter[2];
    const auto high = [](std::uint64_t product) { return static_cast<std::uint32_t>(product >> 32U); };
    const auto low = [](std::uint64_t product) { return static_cast<std::uint32_t>(product); };
    counter = {high(product1) ^ counter[1] ^ key[0], low(product1), high(product0) ^ counter[3] ^ key[1],
               low(product0)};
    key[0] += weyl0;
    key[1] += weyl1;
  }
  return counter;
}

/// A family of independent random streams under one seed; each stream is an array of 32-bit words addressed by block.
class RandomStream {
 public:
  /// Stream number `stream` under `seed`.
  constexpr RandomStream(std::uint64_t seed, std::uint64_t stream) noexcept : seed_(seed), stream_(stream) {}

  /// Words 4 * block ... 4 * block + 3 of the stream.
  [[nodiscard]] constexpr std::array<std::uint32_t, 4> block(std::uint64_t block) const noexcept {
    const auto high = [](std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32U); };
    const auto low = [](std::uint64_t word) { return static_cast<std::uint32_t>(word); };
    return philox4x32({low(block), high(block), low(stream_), high(stream_)}, {low(seed_), high(seed_)});
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
};

}  // namespace lora
