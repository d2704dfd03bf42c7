// SPDX-License-Identifier: MIT
// Any bytes given to the reader of safetensors files end in a file or in a SafetensorsError.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lora/io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto file = lora::SafetensorsFile::from_bytes(std::as_bytes(std::span(data, size)));
    for (const auto name : file.names()) {
      const auto tensor = file.tensor(name);
      if (tensor.shape.size() <= 2 && lora::converts_to_real(tensor.dtype)) (void)tensor.matrix<float>();
    }
  } catch (const lora::FormatError&) {
  }
  return 0;
}
