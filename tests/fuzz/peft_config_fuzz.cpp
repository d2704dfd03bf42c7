// Any text given to the reader of adapter_config.json ends in a configuration or in one of the library's errors.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "lora/io/peft_config.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto config = lora::parse_peft_config({reinterpret_cast<const char*>(data), size});
    (void)lora::targets(config.config, "model.layers.0.q_proj");
  } catch (const lora::Error&) {
  }
  return 0;
}
