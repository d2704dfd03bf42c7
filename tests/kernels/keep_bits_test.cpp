#include "lora/kernels/keep_bits.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "lora/core/philox.hpp"

namespace lora {
namespace {

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (isa_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

TEST(KeepBits, EveryInstructionSetGivesTheWordsOfTheStreamAgainstTheThreshold) {
  for (const Isa isa : supported_isas()) {
    const auto kernel = kernels::keep_bits_kernel(isa);
    for (const std::uint32_t threshold : {0U, 1U, 0x19999999U, 0x80000000U, 0xFFFFFFFFU}) {
      for (const std::uint64_t first_block : {0ULL, 3ULL, (7ULL << 30U) + 5, (1ULL << 62U) + 1}) {
        for (const Index bytes : {0, 1, 7, 8, 9, 16, 63}) {
          const kernels::KeepBits keep{0x123456789ABCDEFULL, (5ULL << 32U) + 9, first_block, threshold};
          std::vector<std::uint8_t> bits(static_cast<std::size_t>(bytes));
          kernel(keep, bytes, bits.data());
          const RandomStream stream(keep.seed, keep.stream);
          for (std::size_t word = 0; word < 8 * bits.size(); ++word) {
            const bool kept = stream.block(first_block + word / 4)[word % 4] >= threshold;
            ASSERT_EQ((bits[word / 8] >> (word % 8)) & 1U, kept ? 1U : 0U) << isa_name(isa) << ", word " << word;
          }
        }
      }
    }
  }
}

TEST(KeepBits, KeepsTheExpectedShare) {
  constexpr double probability = 0.1;
  for (const Isa isa : supported_isas()) {
    std::vector<std::uint8_t> bits(1 << 15);
    kernels::keep_bits_kernel(isa)({1, 2, 0, static_cast<std::uint32_t>(probability * 0x1p32)},
                                   static_cast<Index>(bits.size()), bits.data());
    int kept = 0;
    for (const std::uint8_t byte : bits) kept += std::popcount(byte);
    const double n = 8.0 * static_cast<double>(bits.size());
    EXPECT_NEAR(kept / n, 1 - probability, 5 * std::sqrt(probability * (1 - probability) / n));
  }
}

}  // namespace
}  // namespace lora
