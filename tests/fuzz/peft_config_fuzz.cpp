// SPDX-License-Identifier: MIT
// Any text given to the reader of adapter_config.json ends in one of the library's errors, or in a configuration that
// is written and read again as it is.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "lora/io/peft_config.hpp"
#include "lora/io/peft_config_writer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto config = lora::parse_peft_config({reinterpret_cast<const char*>(data), size}).config;
    const std::string text = lora::peft_config_text(config);
    if (lora::peft_config_text(lora::parse_peft_config(text).config) != text) std::abort();
    (void)lora::targets(config, "model.layers.0.q_proj");
    (void)lora::config_for(config, "model.layers.0.q_proj");
  } catch (const lora::Error&) {
  }
  return 0;
}
