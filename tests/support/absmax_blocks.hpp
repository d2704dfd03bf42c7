// SPDX-License-Identifier: MIT
// The tensors of a bitsandbytes file as blocks of NF4 and FP4, for tests: the file has codes and scales apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace lora::testing {

/// Scales that were quantized themselves: map[code] * scales[block of 256] + offset, each operation rounded to float.
[[nodiscard]] inline std::vector<float> nested_absmax(const std::vector<std::uint8_t>& codes, const float* map,
                                                      const float* scales, float offset) {
  std::vector<float> result(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const volatile float product = map[codes[i]] * scales[i / 256];
    result[i] = product + offset;
  }
  return result;
}

/// The codes with the scale of every block in front of it.
template <class Format>
[[nodiscard]] std::vector<std::uint8_t> absmax_blocks(const std::vector<std::uint8_t>& codes,
                                                      const std::vector<float>& absmax) {
  constexpr auto block_bytes = static_cast<std::size_t>(Format::block_bytes);
  constexpr std::size_t code_bytes = block_bytes - sizeof(float);
  std::vector<std::uint8_t> result(absmax.size() * block_bytes);
  for (std::size_t block = 0; block < absmax.size(); ++block) {
    std::uint8_t* bytes = result.data() + block * block_bytes;
    store_little_endian(absmax[block], bytes);
    std::memcpy(bytes + sizeof(float), codes.data() + block * code_bytes, code_bytes);
  }
  return result;
}

}  // namespace lora::testing
