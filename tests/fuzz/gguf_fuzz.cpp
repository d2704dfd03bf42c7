// SPDX-License-Identifier: MIT
// Any bytes given to the reader of GGUF files end in an adapter or in one of the library's errors.
#include <cstddef>
#include <cstdint>
#include <span>

#include "lora/io/gguf_adapter_reader.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    (void)lora::parse_gguf_adapter(std::as_bytes(std::span(data, size)));
  } catch (const lora::Error&) {
  }
  return 0;
}
