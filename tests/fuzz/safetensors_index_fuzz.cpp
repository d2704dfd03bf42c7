// SPDX-License-Identifier: MIT
// Any text given to the reader of indexes ends in names of files beside it or in one of the library's errors.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "lora/io/safetensors_index.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto files = lora::parse_safetensors_index(text, "index");
    for (const std::string& name : files) {
      if (name.empty() || name == ".." || name.find('/') != std::string::npos) std::abort();
    }
    for (const auto& [tensor, file] : lora::parse_safetensors_weight_map(text, "index")) {
      if (!std::binary_search(files.begin(), files.end(), file)) std::abort();
    }
  } catch (const lora::FormatError&) {
  }
  return 0;
}
