// Any bytes given to the reader of GGUF files end in their contents or in one of the library's errors.
#include <cstddef>
#include <cstdint>
#include <span>

#include "lora/io/gguf_parser.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    (void)lora::parse_gguf(std::as_bytes(std::span(data, size)));
  } catch (const lora::Error&) {
  }
  return 0;
}
