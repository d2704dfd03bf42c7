// SPDX-License-Identifier: MIT
// Any text given to the reader of indexes ends in names of files beside it or in one of the library's errors.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "lora/io/safetensors_index.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    for (const std::string& name :
         lora::parse_safetensors_index({reinterpret_cast<const char*>(data), size}, "index")) {
      if (name.empty() || name == ".." || name.find('/') != std::string::npos) std::abort();
    }
  } catch (const lora::FormatError&) {
  }
  return 0;
}
